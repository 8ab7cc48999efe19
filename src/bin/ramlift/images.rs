//! The images of RAM blocks: which, under what names, and how they are written.

use std::fs;
use std::path::{Path, PathBuf};

use ramlift::{
    BlockFiles, BlockId, Error, ErrorKind, Input, PageTaker, Progress, Ram, Stream, Stretch, image_len,
    scatter, scatter_stretch,
};
use serde::Serialize;

use crate::exit::Failure;
use crate::extract::{DESC, DOMAIN, STATE, Shared};
use crate::manifest::MANIFEST;
use crate::output::Staging;
use crate::paths::BlockPaths;
use crate::progress;
use crate::room::{Bounded, Budget};

/// How much of a block is in the stream.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// Every page.
    Complete,
    /// Some pages; the others are zero in the image.
    Partial,
    /// No page: there is no image.
    Absent,
}

impl Status {
    pub(crate) fn of(ram: &Ram<'_>, id: BlockId) -> Self {
        let pages = ram.block(id).map_or(0, |block| ram.page_size().pages_in(block.used_length));
        match ram.absent_pages(id) {
            0 => Self::Complete,
            absent if absent == pages => Self::Absent,
            _ => Self::Partial,
        }
    }
}

/// The blocks asked for: all, or those of the names given.
pub(crate) fn choose_blocks(path: &Path, ram: &Ram<'_>, names: &[String]) -> Result<Vec<BlockId>, Failure> {
    if names.is_empty() {
        return Ok(ram.blocks().map(|(id, ..)| id).collect());
    }
    let is_named = |name: &String, block: &ramlift::RamBlock| {
        block.idstr == name.as_str() || block.idstr.to_string() == *name
    };
    for name in names {
        if !ram.blocks().any(|(_, block, _)| is_named(name, block)) {
            let known: Vec<String> =
                ram.blocks().take(20).map(|(_, block, _)| block.idstr.to_string()).collect();
            let text = format!("{}: no RAM block \"{name}\"; there are {}", path.display(), known.join(", "));
            return Err(Failure::Other(text));
        }
    }
    let is_chosen = |block: &ramlift::RamBlock| names.iter().any(|name| is_named(name, block));
    Ok(ram.blocks().filter(|(_, block, _)| is_chosen(block)).map(|(id, ..)| id).collect())
}

/// The images of a stream without RAM.
pub(crate) fn none(path: &Path, names: &[String]) -> Result<Vec<(BlockId, Option<String>)>, Failure> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    Err(Failure::Other(format!("{}: the stream has no RAM", path.display())))
}

/// The image's name of each block. Names are given to all, so that a block's
/// file has the same name whichever blocks are asked for.
fn names(ram: &Ram<'_>) -> Vec<String> {
    let mut paths = BlockPaths::with_reserved(&[STATE, DESC, MANIFEST, DOMAIN]);
    ram.blocks().map(|(_, block, _)| paths.assign(&block.idstr)).collect()
}

/// The path of the image of each of `blocks`; none where the stream has no page
/// of it.
pub(crate) fn plan(ram: &Ram<'_>, blocks: &[BlockId]) -> Vec<(BlockId, Option<String>)> {
    let names = names(ram);
    let name = |id: BlockId| names.get(id.0).filter(|_| Status::of(ram, id) != Status::Absent).cloned();
    blocks.iter().map(|id| (*id, name(*id))).collect()
}

/// Writes the images of `blocks`. Gives each with its path, as [`plan`].
pub(crate) fn write(
    staging: &mut Staging,
    ram: &Ram<'_>,
    blocks: &[BlockId],
    input: &Input,
    bar: bool,
) -> Result<Vec<(BlockId, Option<String>)>, Failure> {
    let images = plan(ram, blocks);
    let mut files = Vec::new();
    for (id, name) in &images {
        if let Some(name) = name {
            files.push((*id, staging.file(name)?));
        }
    }
    let written: Vec<BlockId> = files.iter().map(|(id, _)| *id).collect();
    let write = |progress: &Progress| {
        let sink = BlockFiles::create(ram, files)?.sharing(input)?;
        scatter(ram, &written, &sink, progress)
    };
    let done = progress::watch(bar, "writing", image_len(ram, &written), write);
    done.map_err(|error| of_images(error).map_text(|text| staging.shown(text)))?;
    Ok(images)
}

/// The failure of making images.
fn of_images(error: Error) -> Failure {
    match error.kind() {
        ErrorKind::Limit { .. } => Failure::Hinted {
            text: error.to_string(),
            hint: "no guest has that much; --block writes other blocks",
        },
        _ => Failure::from(error),
    }
}

/// Writes the pages of a stream that goes by.
pub(crate) struct Taker<'t> {
    staging: &'t mut Staging,
    path: &'t Path,
    chosen: &'t [String],
    images: Images,
    budget: Budget,
    /// Why it could not go on, if the error that it gave does not say it.
    failure: Option<Failure>,
}

/// The images of a stream that went by.
#[derive(Default)]
pub(crate) struct Images {
    blocks: Vec<BlockId>,
    /// Name and path of each.
    files: Vec<(String, PathBuf)>,
    sink: Option<BlockFiles>,
}

impl<'t> Taker<'t> {
    /// Takes the blocks that are `chosen` by name, or all, and writes no more
    /// than `max_output`.
    pub(crate) fn new(
        staging: &'t mut Staging,
        path: &'t Path,
        chosen: &'t [String],
        max_output: Option<u64>,
    ) -> Self {
        let budget = Budget::new(max_output);
        Self { staging, path, chosen, images: Images::default(), budget, failure: None }
    }

    fn create(&mut self, ram: &Ram<'_>) -> Result<(), Failure> {
        let names = names(ram);
        self.images.blocks = choose_blocks(self.path, ram, self.chosen)?;
        for name in self.images.blocks.iter().filter_map(|id| names.get(id.0)) {
            self.images.files.push((name.clone(), self.staging.file(name)?));
        }
        let paths = self.images.files.iter().map(|(_, path)| path.clone());
        self.budget.watch(paths.clone());
        let files = self.images.blocks.iter().copied().zip(paths);
        let fail = |error| of_images(error).map_text(|text| self.staging.shown(text));
        self.images.sink = Some(BlockFiles::create(ram, files).map_err(fail)?);
        Ok(())
    }

    /// What came of it: the stream, and its images.
    pub(crate) fn outcome<'a>(
        self,
        passed: Result<Stream<'a>, Error>,
    ) -> Result<(Stream<'a>, Images), Failure> {
        match passed {
            Ok(stream) => {
                self.staging.spend(self.budget.taken())?;
                Ok((stream, self.images))
            }
            Err(error) => Err(self.failure.or_else(|| self.budget.failure()).unwrap_or_else(|| {
                let is_output = self.images.files.iter().any(|(_, path)| error.is_of_file(path));
                match is_output {
                    true => Failure::from(error).map_text(|text| self.staging.shown(text)),
                    false => Failure::input(self.path)(error),
                }
            })),
        }
    }
}

impl PageTaker for Taker<'_> {
    fn begin(&mut self, ram: &Ram<'_>) -> ramlift::Result<()> {
        self.create(ram).map_err(|failure| {
            self.failure = Some(failure);
            Error::new(ErrorKind::GoneBy { what: "its images cannot be made" })
        })
    }

    fn take(&mut self, stretch: &Stretch<'_, '_>) -> ramlift::Result<()> {
        let Some(sink) = &self.images.sink else { return Ok(()) };
        let sink = Bounded { images: sink, budget: &self.budget };
        scatter_stretch(stretch, &self.images.blocks, &sink)
    }
}

impl Images {
    /// Writes what is supplied from elsewhere, and removes the images of which
    /// no page came. Gives each block with its path.
    pub(crate) fn settle(
        self,
        staging: &mut Staging,
        ram: &Ram<'_>,
        shared: &[Shared],
    ) -> Result<Vec<(BlockId, Option<String>)>, Failure> {
        let is_shared = |id: &&BlockId| {
            ram.block(**id).is_some_and(|block| shared.iter().any(|(idstr, _)| block.idstr == idstr.as_str()))
        };
        let supplied: Vec<BlockId> = self.blocks.iter().filter(is_shared).copied().collect();
        if let Some(sink) = &self.sink {
            let done = scatter(ram, &supplied, sink, &Progress::new());
            done.map_err(|error| Failure::from(error).map_text(|text| staging.shown(text)))?;
        }
        let mut images = Vec::new();
        for (id, (name, path)) in self.blocks.into_iter().zip(self.files) {
            let is_absent = Status::of(ram, id) == Status::Absent;
            if is_absent {
                fs::remove_file(&path).map_err(Failure::file(&path))?;
                staging.forget(&name);
            }
            images.push((id, (!is_absent).then_some(name)));
        }
        Ok(images)
    }
}
