//! Guest-physical memory: where the bytes of RAM blocks are in the address
//! space that the guest sees.
//!
//! ```text
//!  RAM blocks        machine type, device state, hints
//!      └───────┬────────────────┘
//!              ▼
//!           Layout ── regions: address range → place in a block
//!              │
//!   ┌──────────┼──────────────────┐
//!   ▼          ▼                  ▼
//! PhysicalMemory   files of physical memory   `ramlift layout`
//! (reads bytes)    (ELF, LiME, raw, …)
//! ```
//!
//! A stream has offsets in blocks and no address. Which block is where is the
//! board's code in QEMU: [`Layout::derive`] knows it for each machine type.

pub mod elf;
mod file;
mod layout;
pub mod lime;
mod memory;
pub mod raw;

pub use elf::{Core, Note, VirtualRange};
pub use file::{Plan, progress_len, write};
pub use layout::{Assumption, Layout, LayoutHints, MapHint, Region, Unplaced};
pub use memory::PhysicalMemory;
