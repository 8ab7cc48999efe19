//! What runs in the guest, as far as its memory tells it for certain.
//!
//! ```text
//! PhysicalMemory ── search: pages in parallel ──► VMCOREINFO ──► where the kernel is
//!        │                                            │                  │
//!        └─────── page tables ◄───────────────────────┘          utsname, banner
//!                      │
//!                      ▼
//!              VirtualRange: where the kernel sees memory
//! ```
//!
//! Nothing here is guessed: what is found counts once something else in memory
//! agrees with it, and says so if nothing does.

mod banner;
mod linux;
mod paging;
mod search;
mod vmcoreinfo;

pub use linux::{Depth, Evidence, Linux, Uts};
pub use paging::kernel_ranges;
pub use vmcoreinfo::VmcoreInfo;
