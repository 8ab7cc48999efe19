//! A program's image of the Portable Executable kind, as it is in memory.
//!
//! ```text
//! "MZ" … offset ─► "PE\0\0" | machine, time | SizeOfImage, directories
//!                                                  ├─► exports: name of the image │ names, sorted ─► addresses
//!                                                  └─► debug: "RSDS" GUID age name-of-PDB NUL
//! ```
//!
//! All addresses are relative to the image (RVA). Pages that the guest has paged
//! out are not there, and so is what stands in them.
//!
//! Source followed: Microsoft's PE Format; QEMU `contrib/elf2dmp/pe.h`.

use std::ops::Range;

use object::LittleEndian as LE;
use object::pe::{self, ImageDataDirectory, ImageDosHeader, ImageNtHeaders64};
use object::read::pe::{ExportTable, ExportTarget, ImageNtHeaders, ImageOptionalHeader};

use super::address_space::AddressSpace;
use crate::error::Result;
use crate::units::index;
use crate::wire::limit;

/// What the headers of an image say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Headers {
    /// `SizeOfImage`: bytes from its base on.
    pub(super) image_len: u32,
    /// `TimeDateStamp`.
    pub(super) timestamp: u32,
    exports: Option<Directory>,
    debug: Option<Directory>,
}

/// A table of an image: where it is, relative to the image, and how long.
#[derive(Clone, Copy, Debug)]
struct Directory {
    rva: u32,
    len: u32,
}

/// The file with the symbols of a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pdb {
    /// What it is called: `ntkrnlmp.pdb`.
    pub name: String,
    /// 32 hex digits, as symbol servers have them.
    pub guid: String,
    /// How often it was written.
    pub age: u32,
}

/// An image in memory.
#[derive(Debug)]
pub(super) struct Image<'s, 'm, 'r, 'a> {
    space: &'s AddressSpace<'m, 'r, 'a>,
    base: u64,
    pub(super) headers: Headers,
}

impl Headers {
    /// Those of an image of x86-64 that begins with `bytes`, if it is one.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut at = ImageDosHeader::parse(bytes).ok()?.nt_headers_offset().into();
        let (headers, directories) = ImageNtHeaders64::parse(bytes, &mut at).ok()?;
        let is_its = headers.file_header().machine.get(LE) == pe::IMAGE_FILE_MACHINE_AMD64;
        let directory = |nth| directories.get(nth).and_then(Directory::of);
        is_its.then(|| Self {
            image_len: headers.optional_header().size_of_image(),
            timestamp: headers.file_header().time_date_stamp.get(LE),
            exports: directory(pe::IMAGE_DIRECTORY_ENTRY_EXPORT),
            debug: directory(pe::IMAGE_DIRECTORY_ENTRY_DEBUG),
        })
    }
}

impl Directory {
    fn of(directory: &ImageDataDirectory) -> Option<Self> {
        let (rva, len) = directory.address_range();
        (rva != 0).then_some(Self { rva, len })
    }
}

impl<'s, 'm, 'r, 'a> Image<'s, 'm, 'r, 'a> {
    /// The image whose first page is at `base`, if it is one.
    pub(super) fn at(space: &'s AddressSpace<'m, 'r, 'a>, base: u64) -> Result<Option<Self>> {
        if space.array(base)? != Some(*b"MZ") {
            return Ok(None);
        }
        let mut page = vec![0; 4096];
        let read = space.read(base, &mut page)?;
        let headers = Headers::parse(page.get(..read).unwrap_or_default());
        Ok(headers.map(|headers| Self { space, base, headers }))
    }

    /// The addresses that it takes.
    pub(super) fn range(&self) -> Range<u64> {
        self.base..self.base.saturating_add(self.headers.image_len.into())
    }

    /// Where `rva` is, if it is in the image.
    fn address(&self, rva: u32) -> Option<u64> {
        (rva < self.headers.image_len).then(|| self.base.checked_add(rva.into())).flatten()
    }

    /// The bytes at `rva`, if all of them are there.
    pub(super) fn array<const N: usize>(&self, rva: u32) -> Result<Option<[u8; N]>> {
        self.address(rva).map_or(Ok(None), |at| self.space.array(at))
    }

    /// The text at `rva` that ends with a NUL.
    pub(super) fn text(&self, rva: u32, longest: usize) -> Result<Option<String>> {
        self.address(rva).map_or(Ok(None), |at| self.space.text(at, longest))
    }

    /// What it calls itself where it lists its exports.
    pub(super) fn name(&self) -> Result<Option<String>> {
        /// Where in the directory the RVA of the name is.
        const NAME: u32 = 12;
        let Some(at) = self.headers.exports.and_then(|exports| exports.rva.checked_add(NAME)) else {
            return Ok(None);
        };
        let Some(rva) = self.array(at)? else { return Ok(None) };
        self.text(u32::from_le_bytes(rva), 64)
    }

    /// The file with its symbols, as its debug directory has it.
    pub(super) fn pdb(&self) -> Result<Option<Pdb>> {
        /// Bytes of `IMAGE_DEBUG_DIRECTORY`, and entries that are looked at.
        const ENTRY: u32 = 28;
        const ENTRIES: u32 = 16;
        let Some(Directory { rva, len }) = self.headers.debug else { return Ok(None) };
        for nth in 0..(len / ENTRY).min(ENTRIES) {
            let Some(entry) = rva.checked_add(nth * ENTRY) else { break };
            let Some(entry) = self.array::<{ ENTRY as usize }>(entry)? else { break };
            let word = |at: usize| entry.get(at..).and_then(|word| word.first_chunk()).copied();
            let (kind, place) = (word(12).map(u32::from_le_bytes), word(20).map(u32::from_le_bytes));
            if kind == Some(pe::IMAGE_DEBUG_TYPE_CODEVIEW.0)
                && let Some(pdb) = self.pdb_at(place.unwrap_or(0))?
            {
                return Ok(Some(pdb));
            }
        }
        Ok(None)
    }

    /// The record of CodeView at `rva`.
    fn pdb_at(&self, rva: u32) -> Result<Option<Pdb>> {
        const LEN: u32 = 24;
        let Some(record) = self.array::<{ LEN as usize }>(rva)? else { return Ok(None) };
        let [b'R', b'S', b'D', b'S', a, b, c, d, e, f, g, h, tail @ .., age0, age1, age2, age3] = record
        else {
            return Ok(None);
        };
        // Three numbers, then eight bytes.
        let [first, second] = [[e, f], [g, h]].map(u16::from_le_bytes);
        let guid = format!(
            "{:08X}{first:04X}{second:04X}{:016X}",
            u32::from_le_bytes([a, b, c, d]),
            u64::from_be_bytes(tail),
        );
        let age = u32::from_le_bytes([age0, age1, age2, age3]);
        let name = rva.checked_add(LEN).map_or(Ok(None), |rva| self.text(rva, 255))?;
        Ok(name.map(|name| Pdb { name, guid, age }))
    }

    /// The exports by name, if all of their directory is there.
    pub(super) fn exports(&self) -> Result<Option<Exports>> {
        let Some(Directory { rva, len }) = self.headers.exports else { return Ok(None) };
        let place = self.address(rva).filter(|_| len <= limit::NT_EXPORTS_LEN);
        let Some((at, len)) = place.zip(index(len.into())) else { return Ok(None) };
        let mut bytes = vec![0; len];
        let read = self.space.read(at, &mut bytes)?;
        Ok((read == len).then_some(Exports { rva, bytes }))
    }
}

/// The directory of the exports of an image.
#[derive(Debug)]
pub(super) struct Exports {
    rva: u32,
    bytes: Vec<u8>,
}

impl Exports {
    /// Where what is called `name` is in the image.
    pub(super) fn find(&self, name: &[u8]) -> Option<u32> {
        let table = ExportTable::parse(&self.bytes, self.rva).ok()?;
        // They are sorted, for whoever links to them; one without an end is as
        // long as the directory, so not all of them are looked at.
        let compare = |pointer: &object::U32<LE>| {
            table.name_from_pointer(pointer.get(LE)).unwrap_or_default().cmp(name)
        };
        let nth = table.name_pointers().binary_search_by(compare).ok()?;
        let ordinal = table.name_ordinals().get(nth)?.get(LE);
        match table.target_by_index(ordinal).ok()? {
            ExportTarget::Address(rva) => Some(rva),
            _ => None,
        }
    }
}
