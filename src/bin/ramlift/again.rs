//! An extraction, made again to be checked: all that it makes is compared with
//! what is there instead of written.

use std::io::{self, Write};

use ramlift::physical::{PhysicalMemory, Plan, scatter_file};
use ramlift::{BlockId, Error, Ram, Stream, image_len, scatter};
use rayon::prelude::*;

use crate::args::{ExtractArgs, Format};
use crate::compare::{Expected, Images, OutputDir, Reread, expect_file};
use crate::exit::Failure;
use crate::extract::{self, DESC, DOMAIN, STATE, open_shared, supply_shared};
use crate::images::{self, choose_blocks};
use crate::layers::Origin;
use crate::manifest::Content;
use crate::os_text::RecordedPath;
use crate::state::{Chosen, write_report};
use crate::verify::Report;
use crate::{block_devices, channels, physical, progress, source, temporary};

/// An extraction, made again.
pub(crate) struct Again<'c> {
    pub(crate) output: &'c OutputDir,
    /// The file's name, if it is a single one.
    pub(crate) file: Option<RecordedPath>,
    pub(crate) args: &'c ExtractArgs,
    pub(crate) is_quiet: bool,
}

impl Again<'_> {
    /// Compares all that it makes. Gives what a manifest has to tell of it.
    pub(crate) fn compare(&self, report: &mut Report) -> Result<Content, Failure> {
        let (args, bar) = (self.args, progress::is_visible(self.is_quiet));
        let path = &args.source.stream;
        let (input, origin) = source::open_mapped(path, &args.source.layers, "verify", args.source.salvage)?;
        let shared = args.shared_files.iter().map(open_shared).collect::<Result<Vec<_>, _>>()?;
        channels::with_channels(&args.source, &input, &origin, bar, |stream| {
            let mut stream = stream;
            stream.check_whole().map_err(Failure::input(path))?;
            supply_shared(path, &mut stream, &shared)?;
            match args.format {
                Format::Blocks => self.directory(&stream, &origin, report),
                _ => self.single_file(&stream, &origin, report),
            }
        })
    }

    fn directory(
        &self,
        stream: &Stream<'_>,
        origin: &Origin,
        report: &mut Report,
    ) -> Result<Content, Failure> {
        let (args, path) = (self.args, &self.args.source.stream);
        let images = match stream.ram() {
            Some(ram) => {
                let images = images::plan(ram, &choose_blocks(path, ram, &args.blocks)?);
                self.images(ram, &images, report)?;
                images
            }
            None => images::none(path, &args.blocks)?,
        };
        let block_devices = block_devices::each(stream, args.block_devices, |device, file| {
            self.pieces(file, device.proven_len(), report, |expected| {
                block_devices::pieces(device).try_for_each(|(at, piece)| expected.expect(at, piece))
            })
        })?;
        if let Some(xml) = &origin.domain_xml {
            self.text(DOMAIN, report, |out| out.write_all(xml))?;
        }
        if let Some(description) = stream.description() {
            self.text(DESC, report, |out| extract::write_description(out, description))?;
        }
        let mut failures: Vec<Error> = Vec::new();
        self.text(STATE, report, |out| {
            failures = write_report(out, stream, Chosen::all(stream))?;
            Ok(())
        })?;
        let warnings = extract::warnings(stream, origin, block_devices.warning, &failures);
        let mut content = Content::of(args, stream, origin, &images, warnings);
        content.block_devices = block_devices.entries;
        Ok(content)
    }

    fn images(
        &self,
        ram: &Ram<'_>,
        images: &[(BlockId, Option<String>)],
        report: &mut Report,
    ) -> Result<(), Failure> {
        let mut expected: Vec<Option<Expected<'_>>> = ram.blocks().map(|_| None).collect();
        let mut blocks = Vec::new();
        for (id, name) in images {
            let (Some(name), Some(block), Some(slot)) = (name, ram.block(*id), expected.get_mut(id.0)) else {
                continue;
            };
            let name = RecordedPath::from(name);
            match self.output.file(&name) {
                Ok(_) => *slot = Some(Expected::new(self.output, &name, block.used_length)),
                Err(error) => report.differs(missing(&name, &error)),
            }
            report.made.insert(name);
            blocks.push(*id);
        }
        let sink = Images(expected);
        let bar = progress::is_visible(self.is_quiet);
        progress::watch(bar, "checking", image_len(ram, &blocks), |progress| {
            scatter(ram, &blocks, &sink, progress)
        })?;
        let outcomes: Vec<_> = sink.0.into_par_iter().flatten().map(finish).collect();
        outcomes.into_iter().flatten().for_each(|fault| report.differs(fault));
        Ok(())
    }

    /// Compares a file that is made in pieces.
    fn pieces(
        &self,
        name: &str,
        len: u64,
        report: &mut Report,
        make: impl FnOnce(&Expected<'_>) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let name = RecordedPath::from(name);
        report.made.insert(name.clone());
        let expected = Expected::new(self.output, &name, len);
        match self.output.file(&name).and_then(|_| make(&expected)) {
            Ok(()) => finish(expected).into_iter().for_each(|fault| report.differs(fault)),
            Err(error) => report.differs(missing(&name, &error)),
        }
        Ok(())
    }

    /// Compares a file that is written from begin to end.
    fn text(
        &self,
        name: &str,
        report: &mut Report,
        write: impl FnOnce(&mut Reread) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let name = RecordedPath::from(name);
        report.made.insert(name.clone());
        let path = self.output.path.join(&name);
        let mut reread = match self.output.file(&name) {
            Ok(file) => Reread::new(file),
            Err(error) => {
                report.differs(missing(&name, &error));
                // What is told of it is asked for all the same.
                return write(&mut Reread::new(tempfile::tempfile().map_err(Failure::file(&path))?))
                    .map_err(Failure::file(&path));
            }
        };
        write(&mut reread).map_err(Failure::file(&path))?;
        if let Some(difference) = reread.finish().map_err(Failure::file(&path))? {
            report.differs(format!("{name}: {difference}"));
        }
        Ok(())
    }

    /// Compares a file of guest-physical memory. One that packs is made again, as
    /// a temporary file.
    fn single_file(
        &self,
        stream: &Stream<'_>,
        origin: &Origin,
        report: &mut Report,
    ) -> Result<Content, Failure> {
        let Some(name) = &self.file else {
            return Err(Failure::Other("a directory is what --format blocks makes".to_owned()));
        };
        report.made.insert(name.clone());
        let fault = |error| missing(name, &error);
        if let Err(error) = self.output.file(name) {
            report.differs(fault(error));
        }
        let take = |file: &physical::File<'_, '_>, memory: PhysicalMemory<'_, '_>| {
            let expected = match file {
                physical::File::Plan(plan) => self.planned(name, plan, memory)?,
                packed => self.packed(name, packed, memory)?,
            };
            finish(expected).into_iter().for_each(|fault| report.differs(fault));
            Ok(())
        };
        physical::with_file(self.args, stream, origin, take).map(|(content, _)| content)
    }

    fn planned(
        &self,
        name: &RecordedPath,
        plan: &Plan,
        memory: PhysicalMemory<'_, '_>,
    ) -> Result<Expected<'_>, Failure> {
        let (ram, layout) = (memory.ram(), memory.layout());
        let sink = Images(vec![Some(Expected::new(self.output, name, plan.file_len()))]);
        let bar = progress::is_visible(self.is_quiet);
        progress::watch(bar, "checking", ramlift::physical::progress_len(ram, layout), |progress| {
            scatter_file(ram, layout, plan, &sink, progress)
        })?;
        let expected = sink.0.into_iter().flatten().next();
        expected.ok_or_else(|| Failure::Other(format!("{name}: cannot be compared")))
    }

    fn packed(
        &self,
        name: &RecordedPath,
        packed: &physical::File<'_, '_>,
        memory: PhysicalMemory<'_, '_>,
    ) -> Result<Expected<'_>, Failure> {
        let file = packed.write_again(memory, &self.args.source)?;
        let len = file.metadata().map_err(Failure::file(&temporary::directory()))?.len();
        let expected = Expected::new(self.output, name, len);
        expect_file(&expected, &file).map_err(Failure::file(&self.output.path.join(name)))?;
        Ok(expected)
    }
}

/// What is wrong with a file that has been given all that it should hold.
fn finish(expected: Expected<'_>) -> Option<String> {
    let path = expected.path.clone();
    match expected.finish() {
        Ok(difference) => difference.map(|difference| format!("{path}: {difference}")),
        Err(error) => Some(missing(&path, &error)),
    }
}

/// What is wrong with a file that cannot be opened.
pub(crate) fn missing(path: &RecordedPath, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("{path}: is missing"),
        _ => format!("{path}: {error}"),
    }
}
