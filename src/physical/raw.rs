//! Raw images of guest-physical memory: offset = address, always.
//!
//! What no RAM is at is a hole, so that an address needs no table. It reads
//! as zeros.

use crate::physical::{Layout, Plan};

/// The raw image of `layout`.
pub fn plan(layout: &Layout) -> Plan {
    let mut plan = Plan::default();
    for region in layout.regions() {
        plan.put_region(region.range.start.0, region.bytes());
    }
    plan
}
