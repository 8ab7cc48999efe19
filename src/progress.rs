//! How far a long operation has come.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter of bytes done, which another thread may read at any time.
///
/// Workers add in large steps, so watching costs the work nothing.
#[derive(Debug, Default)]
pub struct Progress(AtomicU64);

impl Progress {
    /// Nothing done yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes done so far.
    pub fn done(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds to them.
    pub fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}
