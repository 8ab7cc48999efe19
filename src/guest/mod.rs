//! What runs in the guest, as far as its memory tells it for certain.
//!
//! ```text
//! PhysicalMemory ── search: pages in parallel ──► VMCOREINFO ──► where the kernel is
//!        │                                            │                  │
//!        └─────── page tables ◄───────────────────────┘          utsname, banner
//!                      │
//!                      ▼
//!              VirtualRange: where the kernel sees memory
//!
//! Vcpu ── LSTAR, CR3 ──► page tables ──► the kernel's image ──► Linux: VMCOREINFO up to 4.12
//!                                                           └─► Windows: base, PDB, build
//! ```
//!
//! Nothing here is guessed: what is found counts once something else in memory
//! agrees with it, and says so if nothing does.

mod address_space;
mod banner;
mod entry;
mod linux;
mod paging;
mod pe;
mod search;
mod vmcoreinfo;
mod windows;

pub use linux::{Depth, Evidence, Linux, Uts};
pub use paging::kernel_ranges;
pub use pe::Pdb;
pub use vmcoreinfo::VmcoreInfo;
pub use windows::{Kdbg, Windows};
