//! What others see of the process, and its clock.
mod clock;
pub use clock::Clock;
