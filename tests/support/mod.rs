//! What the tests share: a writer of streams, a naive reader, the real
//! streams, and a way to run the command.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of this, and a test may fail by panicking"
)]

pub mod channel;
pub mod cli;
pub mod disk;
pub mod fault;
pub mod fixtures;
pub mod going_by;
pub mod hex;
pub mod hostile;
pub mod kernel;
pub mod naive;
pub mod physical;
pub mod synth;
pub mod vcpu;
pub mod windows;
