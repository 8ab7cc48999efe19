//! What decoding gives: values in the order of the stream, each with its
//! place and its bytes.
//!
//! The tree follows the description element by element: an array of three is
//! three [`Field`]s of one name. It borrows names from the description and
//! bytes from the input. It does not interpret opaque blobs (virtio, MSI-X
//! tables, device memory): their bytes are kept as they are.

use crate::units::StreamOffset;
use crate::vmstate::vmdesc::{FieldDesc, Vmsd};

/// A decoded structure.
#[derive(Clone, Debug)]
pub struct State<'a, 'd> {
    /// What describes it.
    pub vmsd: &'d Vmsd,
    /// Its fields, in the order of the stream.
    pub fields: Vec<Field<'a, 'd>>,
    /// Its subsections, in the order of the stream.
    pub subsections: Vec<Subsection<'a, 'd>>,
}

/// A decoded subsection.
#[derive(Clone, Debug)]
pub struct Subsection<'a, 'd> {
    /// The version it was saved with.
    pub version_id: u32,
    /// What it holds. Its name is `state.vmsd.vmsd_name`.
    pub state: State<'a, 'd>,
}

/// A decoded field, or one element of an array.
#[derive(Clone, Debug)]
pub struct Field<'a, 'd> {
    /// What describes it. Its name is `desc.name`.
    pub desc: &'d FieldDesc,
    /// Where its bytes begin.
    pub offset: StreamOffset,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// What they mean.
    pub value: Value<'a, 'd>,
}

/// What a field's bytes mean.
#[derive(Clone, Debug)]
pub enum Value<'a, 'd> {
    /// A pointer that is NULL.
    Null,
    /// The mark that a pointer is not NULL: what it points to is the next
    /// field of the same name (QEMU 11 and later).
    Present,
    /// A truth value.
    Bool(bool),
    /// A number that can be negative.
    Signed(i64),
    /// A number that cannot.
    Unsigned(u64),
    /// Numbers in a row: a bitmap's words (bit `i` is bit `i % 64` of word
    /// `i / 64`), interrupt lines, halves of a register.
    Words(Vec<u64>),
    /// Bytes whose meaning the stream does not give.
    Bytes(&'a [u8]),
    /// A structure.
    Struct(State<'a, 'd>),
    /// The elements of a list (QEMU's `qtailq`, `qlist`).
    List(Vec<State<'a, 'd>>),
    /// The entries of a tree (QEMU's `gtree`), in key order.
    Tree(Vec<(TreeKey<'a, 'd>, State<'a, 'd>)>),
}

/// The key of a tree's entry.
#[derive(Clone, Debug)]
pub enum TreeKey<'a, 'd> {
    /// A number.
    Direct(u64),
    /// A structure.
    Struct(State<'a, 'd>),
}

impl<'a, 'd> State<'a, 'd> {
    /// The first field of that name.
    pub fn field(&self, name: &str) -> Option<&Field<'a, 'd>> {
        self.fields.iter().find(|field| field.desc.name == name)
    }

    /// The subsection of that name.
    pub fn subsection(&self, name: &str) -> Option<&State<'a, 'd>> {
        self.subsections.iter().map(|subsection| &subsection.state).find(|state| state.vmsd.vmsd_name == name)
    }
}

impl<'a, 'd> Value<'a, 'd> {
    /// The number, if it is one that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(number) => Some(*number),
            Self::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The number, if it is one below 2⁶³.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Unsigned(number) => i64::try_from(*number).ok(),
            Self::Signed(number) => Some(*number),
            _ => None,
        }
    }

    /// The structure, if it is one.
    pub fn as_struct(&self) -> Option<&State<'a, 'd>> {
        match self {
            Self::Struct(state) => Some(state),
            _ => None,
        }
    }
}
