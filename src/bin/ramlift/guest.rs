//! What runs in the guest, as `info` shows it.

use std::io::{self, Write};

use ramlift::Stream;
use ramlift::guest::{Depth, Evidence, Linux, Windows};
use ramlift::physical::{Layout, PhysicalMemory};
use serde::Serialize;

use crate::args::LayoutArgs;
use crate::layers::Origin;
use crate::layout;

/// `guest` of `info --json`.
#[derive(Serialize)]
pub(crate) struct GuestReport {
    looked_at: LookedAt,
    linux: Option<LinuxReport>,
    windows: Option<WindowsReport>,
}

/// Which pages were looked at for VMCOREINFO.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum LookedAt {
    /// None: to read them would take more than the index does, or Windows runs.
    Nothing,
    /// The begins of those that stand in records as they are.
    Starts,
    /// All.
    Everything,
}

#[derive(Serialize)]
struct LinuxReport {
    release: String,
    /// The line that the kernel begins its log with.
    banner: Option<String>,
    nodename: Option<String>,
    version: Option<String>,
    machine: Option<String>,
    kaslr_offset: Option<u64>,
    phys_base: Option<i64>,
    /// Where the kernel's image begins in memory.
    image: Option<u64>,
    vmcoreinfo: VmcoreInfoReport,
}

#[derive(Serialize)]
struct VmcoreInfoReport {
    address: u64,
    confirmed_by: Option<&'static str>,
    text: String,
}

#[derive(Serialize)]
struct WindowsReport {
    base: u64,
    image_length: u64,
    /// Where the kernel's image begins in memory.
    image: u64,
    page_tables: u64,
    timestamp: u32,
    build: Option<u16>,
    build_lab: Option<String>,
    pdb: Option<PdbReport>,
    kdbg: Option<KdbgReport>,
}

#[derive(Serialize)]
struct PdbReport {
    name: String,
    guid: String,
    age: u32,
}

#[derive(Serialize)]
struct KdbgReport {
    address: u64,
    length: u32,
}

impl GuestReport {
    /// Looks at what the walk has been next to anyway; with `everything`, at
    /// all memory. What cannot be read is not there.
    pub(crate) fn of(stream: &Stream<'_>, origin: &Origin, everything: bool) -> Self {
        // In a mapped-ram file, or one that went by, the walk met no page.
        let has_records = stream.page_records().next().is_some();
        // Without a processor there is no guest to look for.
        let is_cheap = has_records && stream.vcpu_count() > 0;
        let layout = Layout::derive(stream, &layout::hints(&LayoutArgs::default(), origin)).ok();
        let memory = stream.ram().zip(layout.as_ref()).map(|(ram, layout)| PhysicalMemory::new(ram, layout));
        // The few pages that vCPUs lead to are read in any case.
        let windows = memory.and_then(|memory| Windows::find(stream, memory).ok()?);
        let (looked_at, depth) = match (everything, is_cheap) {
            _ if windows.is_some() => (LookedAt::Nothing, None),
            (true, _) => (LookedAt::Everything, Some(Depth::Everything)),
            (false, true) => (LookedAt::Starts, Some(Depth::PlainStarts)),
            (false, false) => (LookedAt::Nothing, None),
        };
        let linux = memory.zip(depth).and_then(|(memory, depth)| Linux::find(stream, memory, depth).ok()?);
        Self {
            looked_at,
            linux: linux.as_ref().map(LinuxReport::of),
            windows: windows.as_ref().map(WindowsReport::of),
        }
    }

    /// The same for people.
    pub(crate) fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        if let Some(windows) = &self.windows {
            return windows.write_text(out);
        }
        let Some(linux) = &self.linux else {
            return match self.looked_at {
                LookedAt::Nothing => {
                    writeln!(out, "  guest         not looked for (--guest reads memory for it)")
                }
                LookedAt::Starts => writeln!(out, "  guest         unknown (--guest looks further)"),
                LookedAt::Everything => writeln!(out, "  guest         unknown"),
            };
        };
        let unconfirmed = if linux.vmcoreinfo.confirmed_by.is_none() { " (nothing confirms it)" } else { "" };
        match &linux.banner {
            Some(banner) => writeln!(out, "  guest         {banner}")?,
            None => writeln!(out, "  guest         Linux {}{unconfirmed}", linux.release)?,
        }
        if let Some(offset) = linux.kaslr_offset {
            writeln!(out, "  KASLR offset  {offset:#x}")?;
        }
        if let Some(base) = linux.phys_base {
            writeln!(out, "  phys_base     {}{:#x}", if base < 0 { "-" } else { "" }, base.unsigned_abs())?;
        }
        if let Some(image) = linux.image {
            writeln!(out, "  kernel at     {image:#x}")?;
        }
        writeln!(out, "  VMCOREINFO    {:#x}", linux.vmcoreinfo.address)
    }
}

impl LinuxReport {
    fn of(linux: &Linux) -> Self {
        let info = &linux.vmcoreinfo;
        let uts = linux.uts.as_ref();
        Self {
            release: info.os_release().to_owned(),
            banner: linux.banner.clone(),
            nodename: uts.map(|uts| uts.nodename.clone()),
            version: uts.map(|uts| uts.version.clone()),
            machine: uts.map(|uts| uts.machine.clone()),
            kaslr_offset: info.kernel_offset(),
            phys_base: linux.phys_base().map(u64::cast_signed),
            image: linux.image_start().map(|image| image.0),
            vmcoreinfo: VmcoreInfoReport {
                address: linux.at.0,
                confirmed_by: match linux.evidence {
                    Evidence::Kernel => Some("kernel"),
                    Evidence::Device => Some("device"),
                    Evidence::Itself => None,
                },
                text: info.text().to_owned(),
            },
        }
    }
}

impl WindowsReport {
    fn of(windows: &Windows) -> Self {
        Self {
            base: windows.base,
            image_length: windows.image_len,
            image: windows.at.0,
            page_tables: windows.page_tables.0,
            timestamp: windows.timestamp,
            build: windows.build,
            build_lab: windows.build_lab.clone(),
            pdb: windows.pdb.as_ref().map(|pdb| PdbReport {
                name: pdb.name.clone(),
                guid: pdb.guid.clone(),
                age: pdb.age,
            }),
            kdbg: windows.kdbg.map(|kdbg| KdbgReport { address: kdbg.address, length: kdbg.len }),
        }
    }

    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        write!(out, "  guest         Windows")?;
        if let Some(build) = self.build {
            write!(out, ", build {build}")?;
        }
        if let Some(lab) = &self.build_lab {
            write!(out, " ({lab})")?;
        }
        writeln!(out)?;
        let (base, len) = (self.base, self.image_length);
        writeln!(out, "  kernel at     {base:#x}, {len:#x} bytes; in memory {:#x}", self.image)?;
        writeln!(out, "  page tables   {:#x}", self.page_tables)?;
        match &self.pdb {
            Some(pdb) => writeln!(out, "  PDB           {} {} age {}", pdb.name, pdb.guid, pdb.age)?,
            None => writeln!(out, "  PDB           unknown (the guest has paged it out)")?,
        }
        match &self.kdbg {
            Some(kdbg) => writeln!(out, "  KDBG          {:#x}, {:#x} bytes", kdbg.address, kdbg.length),
            None => writeln!(out, "  KDBG          not found (since Windows 8 it is encoded)"),
        }
    }
}
