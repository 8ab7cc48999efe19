//! Device state: what the FULL sections hold, decoded by the stream's own
//! description.
//!
//! A device's body has no framing inside: its fields stand one behind the
//! other, then its subsections. Which fields, of which type and size, the
//! JSON description at the end of the stream says; it describes each FULL
//! section, in order, and no other.
//!
//! ```text
//! field field field …                                   by the description
//! { 05  str8 name  be32 version_id  field field … }     subsections
//! ```
//!
//! - [`locate`] finds the description before the walk has reached it.
//! - [`vmdesc`] reads it, duplicate keys and all.
//! - [`field`] knows the types of single fields and reads them.
//! - [`decode`] walks a body by its description.
//! - [`value`] is what comes out.
//! - [`virtio`] tells apart the one field that QEMU describes as opaque though
//!   it holds most of a device.
//!
//! Source followed: QEMU `migration/vmstate.c`, `migration/vmstate-types.c`.

pub(crate) mod decode;
pub(crate) mod field;
pub(crate) mod locate;
pub(crate) mod value;
pub(crate) mod virtio;
pub(crate) mod vmdesc;

pub use field::FieldType;
pub use value::{Field, State, Subsection, TreeKey, Value};
pub use virtio::{
    Indicator, ModernQueue, MsixState, PackedQueue, Unknown, Virtio, VirtioElement, VirtioExtra, VirtioQueue,
    VirtioSubsections, VirtioTransport,
};
pub use vmdesc::{DeviceDesc, FieldDesc, VmDesc, Vmsd};
