//! Iterative handlers other than `ram`: what all sections of one say.
//!
//! The walk has found where each body ends. What they say is read again from
//! the stream, piece by piece, whenever somebody asks.

use indexmap::IndexMap;

use crate::body::{BlockDevices, DirtyBitmaps, Piece, Pieces, layout_of};
use crate::cursor::Cursor;
use crate::error::Result;
use crate::section::{Handler, Section, SectionType};
use crate::stream::Stream;

/// An iterative handler other than `ram`, and its sections.
#[derive(Clone, Debug)]
pub struct Iterated<'s, 'a> {
    stream: &'s Stream<'a>,
    handler: &'s Handler,
    sections: Vec<&'s Section>,
}

impl<'a> Stream<'a> {
    /// The iterative handlers other than `ram`, in the order in which they
    /// start.
    pub fn iterated(&self) -> impl Iterator<Item = Iterated<'_, 'a>> {
        let mut by_id = IndexMap::<u32, Iterated<'_, 'a>>::new();
        let is_one =
            |section: &&Section| section.kind != SectionType::Full && section.handler.idstr != *"ram";
        for section in self.sections().iter().filter(is_one) {
            let handler = &*section.handler;
            let new = || Iterated { stream: self, handler, sections: Vec::new() };
            by_id.entry(handler.section_id).or_insert_with(new).sections.push(section);
        }
        by_id.into_values()
    }
}

impl<'s, 'a> Iterated<'s, 'a> {
    /// Whose sections these are.
    pub fn handler(&self) -> &'s Handler {
        self.handler
    }

    /// START, PART and END, in the order of the stream.
    pub fn sections(&self) -> &[&'s Section] {
        &self.sections
    }

    /// Whether the stream tells where the handler's bytes are, but not what
    /// they mean: they are for the code that wrote them alone.
    pub fn is_opaque(&self) -> bool {
        layout_of(self.handler.idstr.as_bytes()).is_some_and(|(layout, _)| layout.is_opaque())
    }

    /// What they say, in the order of the stream. What ends a body says
    /// nothing.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'a>> {
        let layout = layout_of(self.handler.idstr.as_bytes()).map(|(layout, _)| layout);
        // The walk has gone over them without an error.
        self.sections.iter().flat_map(move |section| {
            let body = Cursor::new(self.stream.body(section), section.body);
            let pieces = layout.map(|layout| Pieces::new(layout, section.kind, body));
            pieces.into_iter().flatten().filter_map(Result::ok)
        })
    }

    /// The bitmaps, if this is `dirty-bitmap`; else none.
    ///
    /// # Errors
    /// [`ErrorKind::Limit`](crate::ErrorKind::Limit) if there are too many.
    pub fn dirty_bitmaps(&self) -> Result<DirtyBitmaps<'a>> {
        DirtyBitmaps::gather(self.pieces()).map_err(|error| error.inside(self.handler))
    }

    /// The block devices, if this is `block`; else none.
    ///
    /// # Errors
    /// [`ErrorKind::Limit`](crate::ErrorKind::Limit) if there are too many.
    pub fn block_devices(&self) -> Result<BlockDevices<'a>> {
        BlockDevices::gather(self.pieces()).map_err(|error| error.inside(self.handler))
    }
}
