//! The report of `check`, a line for each step.

use std::io::{self, Write};

/// Prints the steps.
pub(super) struct Report<'a> {
    out: &'a mut dyn Write,
    has_failed: bool,
}

/// The reason why a step failed, with advice.
pub(super) struct Failure(pub(super) String);

impl<'a> Report<'a> {
    /// Creates an empty report.
    pub(super) fn new(out: &'a mut dyn Write) -> Self {
        Self { out, has_failed: false }
    }

    /// Returns whether a step failed.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed
    }

    pub(super) fn ok(&mut self, step: &str, detail: &str) -> io::Result<()> {
        self.line("ok    ", step, detail)
    }

    /// Reports a fact of interest to an operator.
    pub(super) fn note(&mut self, step: &str, detail: &str) -> io::Result<()> {
        self.line("note  ", step, detail)
    }

    pub(super) fn failed(&mut self, step: &str, failure: &Failure) -> io::Result<()> {
        self.has_failed = true;
        self.line("FAILED", step, &failure.0)
    }

    fn line(&mut self, verdict: &str, step: &str, detail: &str) -> io::Result<()> {
        writeln!(self.out, "{verdict}  {step}: {}", detail.replace(char::is_control, " "))?;
        // The next step may take seconds.
        self.out.flush()
    }
}
