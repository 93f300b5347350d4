//! The events of a range, in the order of their offsets.

use std::ops::ControlFlow;

use chrono::DateTime;
use futures_util::TryStreamExt;

use crate::model::event::UtcDay;
use crate::model::position::{Offset, OffsetRange, StreamPartition};
use crate::model::projection::{DaySink, EventRow};
use crate::store::commit::offset_of;
use crate::store::export::{EVENT_ROW_COLUMNS, event_row};
use crate::store::{Session, StoreError};

/// The columns of a row of which a trust line is made; the others are not read.
const TRUST_ROW_COLUMNS: &str = "audit_id, correlation_id, timestamp, operation, command, args, actor, status, \
    NULL::integer AS duration_ms, '' AS result_signature, '' AS client_app, '' AS caller_ip_address, \
    '' AS federated_source, NULL::text AS query_intent, false AS bypass_llm, trust_score::text AS trust_score, \
    purview_compatible, '{}' AS metadata, '' AS schema_version, '' AS tenant_id, NULL::text AS extra";

/// How far a page of rows went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageEnd {
    /// All rows of the range were visited.
    Range,
    /// Rows from this offset on may be left.
    Before(Offset),
}

impl Session {
    /// Calls `visit` for the events of `range` that have a line in `sink`, of one day or all, by offset; at most
    /// `row_max_count`, and until `visit` breaks with the offset from which rows are left.
    ///
    /// Each row of the range must be below a position that was read on this session.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::Broken`] for a row that no event can be.
    pub async fn projection_rows(
        &mut self,
        sink: DaySink,
        (key, range, day): (StreamPartition, OffsetRange, Option<UtcDay>),
        row_max_count: i64,
        mut visit: impl FnMut(Offset, &EventRow<'_>) -> ControlFlow<Offset>,
    ) -> Result<PageEnd, StoreError> {
        let columns = match sink {
            DaySink::Purview => EVENT_ROW_COLUMNS,
            DaySink::Trust => TRUST_ROW_COLUMNS,
        };
        let moment = |micros| DateTime::from_timestamp_micros(micros);
        let bounds = day.map(|day| (day.start_unix_micros(), day.next().start_unix_micros()));
        let in_day = if day.is_some() { "AND timestamp >= $6 AND timestamp < $7" } else { "" };
        // A row that is for nobody counts as visited only by its offset: the filter stands behind the limit's order.
        let sql = format!(
            "SELECT source_offset, {columns} FROM audit_events.events \
              WHERE stream_id = $1 AND source_partition = $2 AND source_offset >= $3 AND source_offset < $4 \
                    {in_day} {for_purview} ORDER BY source_offset LIMIT $5",
            for_purview = if sink.projection().is_for_purview() { "AND purview_compatible" } else { "" },
        );
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(key.stream.0)
            .bind(key.partition.0)
            .bind(range.start().as_i64())
            .bind(range.end().as_i64())
            .bind(row_max_count);
        if let Some((start, end)) = bounds {
            query = query.bind(moment(start)).bind(moment(end));
        }
        let mut rows = query.fetch(&mut self.connection);
        let (mut row_count, mut last) = (0_i64, None);
        while let Some(row) = rows.try_next().await? {
            let offset = offset_of(&row, "source_offset")?;
            if let ControlFlow::Break(left) = visit(offset, &event_row(&row)?) {
                return Ok(PageEnd::Before(left));
            }
            row_count += 1;
            last = Some(offset);
        }
        Ok(match last {
            Some(last) if row_count >= row_max_count => PageEnd::Before(last.next()),
            _ => PageEnd::Range,
        })
    }
}
