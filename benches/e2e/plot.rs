//! Draws rates by size of batches, a line for each number of lanes.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::{
    ChartBuilder, Circle, IntoDrawingArea, IntoLogRange, LineSeries, RGBColor, SVGBackend, WHITE,
};

/// A line: its name, and (records in a batch, events a second) in order.
pub(crate) type Line = (String, Vec<(f64, f64)>);

const SIZE: (u32, u32) = (760, 420);
const COLORS: [RGBColor; 3] = [RGBColor(31, 119, 180), RGBColor(214, 39, 40), RGBColor(44, 160, 44)];

/// Draws `lines` to `file`.
pub(crate) fn draw(file: &Path, lines: &[Line]) -> anyhow::Result<()> {
    let points = lines.iter().flat_map(|(_, points)| points);
    let (mut sizes, mut most) = ((f64::MAX, 0f64), 0f64);
    for (size, rate) in points {
        sizes = (sizes.0.min(*size), sizes.1.max(*size));
        most = most.max(*rate);
    }
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    let drawn = || -> Result<(), Box<dyn std::error::Error + '_>> {
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(14)
            .x_label_area_size(42)
            .y_label_area_size(74)
            .build_cartesian_2d((sizes.0 * 0.9..sizes.1 * 1.1).log_scale(), 0.0..most * 1.1)?;
        chart.configure_mesh().x_desc("records in a batch (BATCH_MAX_EVENTS)").y_desc("events/s").draw()?;
        for ((name, points), color) in lines.iter().zip(COLORS) {
            chart
                .draw_series(LineSeries::new(points.iter().copied(), color))?
                .label(name)
                .legend(move |place| Circle::new((place.0 + 10, place.1), 4, color));
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, color)))?;
        }
        chart
            .configure_series_labels()
            .border_style(RGBColor(120, 120, 120))
            .background_style(WHITE)
            .draw()?;
        area.present()?;
        Ok(())
    };
    drawn().map_err(|error| anyhow!("draw {}: {error}", file.display()))
}
