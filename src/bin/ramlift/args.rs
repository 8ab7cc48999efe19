//! The command line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, PathBufValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ramlift::physical::MapHint;
use ramlift::{BlockOffset, PhysicalAddress};
use serde::{Deserialize, Serialize};

use crate::hash::Algorithm;

/// The most threads that can be asked for.
pub(crate) const THREADS_MAX: u16 = 1024;

/// Read QEMU migration streams: guest RAM images and decoded device state.
///
/// A stream is written by `migrate file:…`, `savevm`, `virsh save`, `virsh dump`
/// or a Proxmox snapshot; it is found inside libvirt save images, qcow2
/// snapshots and compressed files. Exit codes: 0 complete, 1 failed, 2 usage, 3 partial.
#[derive(Parser)]
#[command(name = "ramlift", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Say what a stream holds
    Info(InfoArgs),
    /// Write RAM images and device state into a directory
    Extract(ExtractArgs),
    /// Check an extraction again: by its manifest, and against the stream
    Verify(VerifyArgs),
    /// Print decoded device state as JSON
    State(StateArgs),
    /// Say where guest-physical memory is, and how that is known
    Layout(LayoutCommandArgs),
    /// Print the registers of each vCPU, as QEMU's `info registers -a` does
    Cpu(CpuArgs),
    /// Print the stream's own description, JSON as QEMU wrote it
    Desc(DescArgs),
    /// Do what QEMU's scripts/analyze-migration.py does: same options, same files, same text
    AnalyzeMigration(AnalyzeArgs),
    /// Print shell completions or the man page
    #[command(hide = true)]
    Generate(GenerateArgs),
}

// Where in a file the stream is.
#[derive(Args, Default)]
pub(crate) struct LayerArgs {
    /// Which internal snapshot of a qcow2 image [default: the only one that
    /// has VM state]
    #[arg(long, value_name = "ID|TAG")]
    pub(crate) snapshot: Option<String>,
    /// Where in the file the stream begins, or what it is inside of, in bytes;
    /// `0x` is hex; takes K, M, G, T, or KiB and so on
    #[arg(long, value_name = "OFFSET", default_value = "0", hide_default_value = true, value_parser = size)]
    pub(crate) offset: u64,
    /// Let what has to be unpacked into TMPDIR take no more than this, in bytes;
    /// takes K, M, G, T [default: 64 MiB and 100 times the input's length]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_temp: Option<u64>,
    // By what a stream that comes once is hashed as it comes: for commands that
    // have an option of that name.
    #[arg(skip)]
    pub(crate) hash: Option<Algorithm>,
}

// What is read, and how. No doc comment: it would become the help's own text.
#[derive(Args)]
pub(crate) struct SourceArgs {
    /// The migration stream; - is standard input
    pub(crate) stream: PathBuf,
    #[command(flatten)]
    pub(crate) layers: LayerArgs,
    /// What was captured of a channel, for the main channel of a multifd
    /// migration; once for each. Compressed ones are unpacked in TMPDIR
    #[arg(long = "channel", value_name = "FILE")]
    pub(crate) channels: Vec<PathBuf>,
    /// Go on behind what is cut or damaged, and list what is lost
    #[arg(long)]
    pub(crate) salvage: bool,
}

#[derive(Args)]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Print JSON, as docs/json.md describes it
    #[arg(long)]
    pub(crate) json: bool,
    /// Look everywhere in the guest's memory for what runs in it. Otherwise only
    /// what the index has been next to anyway is looked at
    #[arg(long, conflicts_with = "xml")]
    pub(crate) guest: bool,
    /// Print the domain XML of a libvirt save image, and nothing else
    #[arg(long, conflicts_with = "json")]
    pub(crate) xml: bool,
}

#[derive(Args)]
pub(crate) struct ExtractArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// What to write: an image of each RAM block, or guest-physical memory as
    /// one file
    #[arg(long, value_enum, default_value_t = Format::Blocks)]
    pub(crate) format: Format,
    /// Directory to write, or the file of one format [default: the stream's
    /// file name + ".extracted", or the format's name, in the current directory]
    #[arg(short, long, value_name = "PATH", value_parser = output())]
    pub(crate) output: Option<PathBuf>,
    /// How --format kdump compresses [default: zstd]
    #[arg(long, value_enum, value_name = "METHOD")]
    pub(crate) compress: Option<Compress>,
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
    /// Put memory into an ELF file by the kernel's virtual addresses too, so
    /// that plain gdb finds it by symbols (Linux on x86-64 and aarch64)
    #[arg(long)]
    pub(crate) vaddr: bool,
    /// Write only this RAM block's image; may be given again
    #[arg(long = "block", value_name = "IDSTR")]
    pub(crate) blocks: Vec<String>,
    /// The file that a RAM block was shared through, for a stream without it
    /// (capability x-ignore-shared); may be given again
    #[arg(long = "shared-file", value_name = "IDSTR=PATH", value_parser = OsStringValueParser::new().try_map(parse_shared_file))]
    pub(crate) shared_files: Vec<SharedFile>,
    /// Write an image of each block device whose content is in the stream
    /// (block migration, QEMU up to 9.0)
    #[arg(long)]
    pub(crate) block_devices: bool,
    /// Hash the input and each file that is written, by this function, and
    /// record it in the manifest
    #[arg(long, value_enum, value_name = "FUNCTION")]
    pub(crate) hash: Option<Algorithm>,
    /// Replace files that exist
    #[arg(long)]
    pub(crate) force: bool,
    /// Write no more than this to disk, in bytes; takes K, M, G, T. What is
    /// known to take more is not begun
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_output: Option<u64>,
    /// Wait until all is on the disk before it is in its place: it is whole
    /// then even if the power fails. Takes as long as the disk does
    #[arg(long)]
    pub(crate) sync: bool,
    /// Read the stream from begin to end, once, as a pipe is read. Files that
    /// memory cannot keep are read so anyway: where a page was sent again, it
    /// is written again
    #[arg(long, conflicts_with_all = ["salvage", "channels"])]
    pub(crate) read_once: bool,
    /// Number of threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(THREADS_MAX)))]
    pub(crate) threads: Option<u16>,
    /// Show neither progress nor what was written; warnings stay
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// The directory that `extract` wrote, or the manifest of a single file
    /// (FILE.manifest.json)
    #[arg(value_name = "DIR|MANIFEST")]
    pub(crate) output: PathBuf,
    /// Where the stream is now [default: where the manifest says]
    #[arg(long, value_name = "PATH")]
    pub(crate) stream: Option<PathBuf>,
    /// Let what has to be unpacked into TMPDIR take no more than this, in bytes;
    /// takes K, M, G, T [default: 64 MiB and 100 times the input's length]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_temp: Option<u64>,
    /// Number of threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(THREADS_MAX)))]
    pub(crate) threads: Option<u16>,
    /// Show neither progress nor that all is well
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// What `extract` writes.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// A directory: an image of each RAM block, and device state
    Blocks,
    /// An ELF core file of guest-physical memory with the vCPUs' registers: for
    /// crash, drgn, gdb, volatility3, MemProcFS
    Elf,
    /// A LiME image of guest-physical memory
    Lime,
    /// An AVML image of guest-physical memory, compressed by snappy
    Avml,
    /// A compressed dump as kdump's makedumpfile writes it, with the vCPUs'
    /// registers: for crash, drgn, makedumpfile
    Kdump,
    /// Guest-physical memory with nothing around it: offset = address
    Raw,
}

/// How a compressed dump is compressed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compress {
    /// For readers of all ages
    Zlib,
    /// Faster, and as small
    Zstd,
}

// What is known of the guest's memory beside the stream.
#[derive(Args, Default)]
pub(crate) struct LayoutArgs {
    /// How much RAM is below 4 GiB, on a PC whose stream does not tell
    #[arg(long = "below-4g", value_name = "SIZE", value_parser = size)]
    pub(crate) below_4g: Option<u64>,
    /// Where a RAM block is in guest-physical memory, or LENGTH bytes of it
    /// from OFFSET on; may be given again. Sizes and offsets take K, M, G, T;
    /// `0x` is hex
    #[arg(long = "map", value_name = "IDSTR@ADDRESS[+OFFSET:LENGTH]", value_parser = parse_map)]
    pub(crate) maps: Vec<MapHint>,
}

impl LayoutArgs {
    /// Whether anything is known.
    pub(crate) fn is_given(&self) -> bool {
        self.below_4g.is_some() || !self.maps.is_empty()
    }
}

#[derive(Args)]
pub(crate) struct LayoutCommandArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
    /// Print JSON, as docs/json.md describes it
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct CpuArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Print JSON, as docs/json.md describes it
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where output goes: not to a pipe.
fn output() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.as_os_str() == "-" {
        true => Err("output is written here and there, so it is files, not standard output; a file of that name is ./-"),
        false => Ok(path),
    })
}

fn parse_map(text: &str) -> Result<MapHint, String> {
    const SHAPE: &str = "expected IDSTR@ADDRESS or IDSTR@ADDRESS+OFFSET:LENGTH";
    // Names of firmware have an @ of their own.
    let (idstr, place) = text.rsplit_once('@').ok_or(SHAPE)?;
    let (address, part) = match place.split_once('+') {
        Some((address, part)) => (address, Some(part.split_once(':').ok_or(SHAPE)?)),
        None => (place, None),
    };
    let part = part.map(|(from, len)| {
        let (from, len) = (size(from)?, size(len)?);
        let end = from.checked_add(len).ok_or("the part's end is beyond 2⁶⁴")?;
        Ok::<_, String>(BlockOffset(from)..BlockOffset(end))
    });
    let address = PhysicalAddress(size(address)?);
    Ok(MapHint { idstr: idstr.as_bytes().to_vec(), address, part: part.transpose()? })
}

/// A number of bytes: decimal or `0x` hex, and decimal with K, M, G or T,
/// powers of 1024, which `iB` may follow.
fn size(text: &str) -> Result<u64, String> {
    let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let short = text.strip_suffix("iB").unwrap_or(text);
    let unit = units.iter().find(|(name, _)| short.to_ascii_uppercase().ends_with(*name));
    let unit = unit.filter(|_| !text.starts_with("0x"));
    let (digits, shift) = unit.map_or((text, 0), |(_, shift)| (&short[..short.len() - 1], *shift));
    let number = offset(digits).map_err(|error| format!("\"{text}\": {error}"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("\"{text}\" is beyond 2⁶⁴"))
}

/// `IDSTR=PATH`. A block's name has no `=`; if one had, the file's would have
/// to have none.
#[derive(Clone)]
pub(crate) struct SharedFile {
    pub(crate) idstr: String,
    pub(crate) path: PathBuf,
}

fn parse_shared_file(text: OsString) -> Result<SharedFile, &'static str> {
    const SHAPE: &str = "expected IDSTR=PATH";
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=').ok_or(SHAPE)?;
    let (idstr, path) = bytes.split_at_checked(at).ok_or(SHAPE)?;
    // Blocks are named as they are shown, which is text.
    let idstr = std::str::from_utf8(idstr).map_err(|_| SHAPE)?.to_owned();
    let path = OsStr::from_bytes(path.get(1..).unwrap_or_default()).into();
    Ok(SharedFile { idstr, path })
}

#[derive(Args)]
pub(crate) struct StateArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Only devices whose name matches: `*` is any text, `?` any character;
    /// may be given again
    #[arg(long = "device", value_name = "PATTERN")]
    pub(crate) devices: Vec<String>,
    /// Write the bytes of the bodies of this section instead, as they stand in
    /// the stream, one behind the other
    #[arg(long, value_name = "IDSTR", conflicts_with = "devices")]
    pub(crate) raw: Option<String>,
    /// Which of the sections of that name, by its instance id
    #[arg(long, value_name = "ID", requires = "raw")]
    pub(crate) instance: Option<u32>,
    /// Only the section that begins at this offset, or whose body does, as
    /// `info` and `state` list them; `0x` is hex
    #[arg(long, value_name = "OFFSET", requires = "raw", value_parser = offset)]
    pub(crate) at: Option<u64>,
}

#[derive(Args)]
pub(crate) struct DescArgs {
    /// The migration stream; - is standard input
    pub(crate) stream: PathBuf,
    #[command(flatten)]
    pub(crate) layers: LayerArgs,
}

#[derive(Args)]
#[command(infer_long_args = true)]
pub(crate) struct AnalyzeArgs {
    /// Migration dump to read from
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) layers: LayerArgs,
    /// Dump RAM contents as well
    #[arg(short, long)]
    pub(crate) memory: bool,
    /// What to dump
    #[arg(short, long, value_enum, default_value_t = Dump::State)]
    pub(crate) dump: Dump,
    /// Extract contents into individual files in the current directory
    #[arg(short = 'x', long)]
    pub(crate) extract: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dump {
    State,
    Desc,
}

#[derive(Args)]
pub(crate) struct GenerateArgs {
    /// What to print
    pub(crate) what: Generate,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Generate {
    Man,
    Bash,
    Elvish,
    Fish,
    #[value(name = "powershell")]
    PowerShell,
    Zsh,
}

/// An offset as `info` shows it, or as JSON has it.
fn offset(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
}
