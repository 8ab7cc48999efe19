//! What is fuzzed, and what must hold: a function of any bytes for each target.
//!
//! They fail by panicking. The binaries in `fuzz_targets/` hand them what
//! libFuzzer makes up; `tests/fuzz.rs` of the library, which takes this file in
//! as a module, hands them the seeds and what was found before.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a target fails by panicking"
)]

mod body;
mod cpu;
mod damage;
mod description;
mod device;
mod differential;
mod fields;
mod guest;
mod images;
mod layout;
mod look;
mod mapped_ram;
mod multifd;
mod plan;
mod read_once;
mod salvage;
mod stream;
mod virtio;
mod wrapper;
mod xbzrle;

#[allow(unused_imports, reason = "for those who make seeds")]
pub use body::seed as body_seed;

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

#[allow(dead_code, reason = "a part of it is used")]
#[path = "../../tests/support/channel.rs"]
mod channel;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "../../tests/support/kernel.rs"]
mod kernel;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "../../tests/support/naive.rs"]
mod naive;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "../../tests/support/physical.rs"]
mod physical;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "../../tests/support/synth.rs"]
mod synth;

#[allow(dead_code, reason = "a part of it is used")]
#[path = "../../tests/support/windows.rs"]
mod nt;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "../../tests/support/vcpu.rs"]
mod vcpu;

/// Bytes of memory that a run may take beside its input.
pub const MEMORY: usize = 256 << 20;

/// What all threads of a run may take of processors. By the clock it may be more,
/// on a machine that does other things too.
pub const TIME: Duration = Duration::from_secs(5);

/// What this process has taken of processors.
pub fn cpu_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().expect("it is no negative time")
}

/// A target: its name, and what it does with any bytes.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 18] = [
    Target { name: "stream", run: stream::run },
    Target { name: "description", run: description::run },
    Target { name: "device", run: device::run },
    Target { name: "device_made", run: device::run_made },
    Target { name: "body", run: body::run },
    Target { name: "virtio", run: virtio::run },
    Target { name: "xbzrle", run: xbzrle::run },
    Target { name: "mapped_ram", run: mapped_ram::run },
    Target { name: "wrapper", run: wrapper::run },
    Target { name: "qcow2", run: wrapper::run_qcow2 },
    Target { name: "read_once", run: read_once::run },
    Target { name: "salvage", run: salvage::run },
    Target { name: "multifd", run: multifd::run },
    Target { name: "differential", run: differential::run },
    Target { name: "damage", run: damage::run },
    Target { name: "cpu", run: cpu::run },
    Target { name: "layout", run: layout::run },
    Target { name: "guest", run: guest::run },
];

/// The target of this name.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("no target {name}"))
}

/// The binary of a target: hands what libFuzzer makes up to it, and lets it take
/// no more memory and time than is promised.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        #[global_allocator]
        static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
            let held = ALLOCATOR.allocated();
            ALLOCATOR.set_limit(held + $crate::MEMORY + bytes.len()).expect("less is held");
            let start = $crate::cpu_time();
            ($crate::target($name).run)(bytes);
            let took = $crate::cpu_time() - start;
            ALLOCATOR.set_limit(usize::MAX).expect("no limit");
            assert!(took <= $crate::TIME, "it takes {took:?}");
        });
    };
}
