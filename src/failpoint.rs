//! Places where a test may kill or stop the process, by the feature `failpoints` and the variable `FAILPOINTS` (syntax:
//! the crate `fail`). The action `return` is SIGKILL to ourselves, `3*off->return` at the fourth time; `sleep(ms)`
//! waits. Without the feature nothing is there.

/// Reads `FAILPOINTS`.
#[cfg(feature = "failpoints")]
pub(crate) fn set_up() {
    // Kept for life.
    std::mem::forget(fail::FailScenario::setup());
}

/// Does what `FAILPOINTS` says of `name`.
#[cfg(feature = "failpoints")]
pub(crate) fn at(name: &'static str) {
    fail::fail_point!(name, |_| {
        let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        tracing::error!(?killed, "still here");
    });
}

/// Nothing, without the feature.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn set_up() {}

/// Nothing, without the feature.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn at(_name: &'static str) {}

/// Whether `FAILPOINTS` switches `name` on (`name=return`): for the torture rig's mutants, which leave out what keeps the
/// promise.
#[cfg(feature = "failpoints")]
pub(crate) fn is_on(name: &'static str) -> bool {
    fail::eval(name, |_| ()).is_some()
}

/// Never, without the feature.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn is_on(_name: &'static str) -> bool {
    false
}
