//! LiME images, as the Linux Memory Extractor writes them.
//!
//! ```text
//! le32 0x4c694d45 "EMiL"  le32 1  le64 first  le64 last  8 × 0     a head, 32 bytes
//! memory from `first` to `last`, both included
//! head, memory, …                                                  by ascending address
//! ```
//!
//! Ranges stand back to back, so nothing in them is aligned in the file.
//!
//! Source followed: LiME `doc/README.md`, volatility3 `layers/lime.py`.

use crate::physical::{Layout, Plan};

const MAGIC: u32 = 0x4c69_4d45;
const VERSION: u32 = 1;

/// The LiME image of `layout`.
pub fn plan(layout: &Layout) -> Plan {
    let mut plan = Plan::default();
    for region in layout.regions() {
        let (first, last) = (region.range.start.0, region.range.end.0 - 1);
        let words = [first, last, 0].map(u64::to_le_bytes);
        let head = [MAGIC.to_le_bytes(), VERSION.to_le_bytes()].concat();
        plan.push_head([head, words.concat()].concat());
        plan.push_region(region.bytes(), 1, 0);
    }
    plan
}
