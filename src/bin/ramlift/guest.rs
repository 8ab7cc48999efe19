//! What runs in the guest, as `info` shows it.

use std::io::{self, Write};

use ramlift::Stream;
use ramlift::guest::{Depth, Evidence, Linux};
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
}

/// Which pages were looked at.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum LookedAt {
    /// None: to read them would take more than the index does.
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

impl GuestReport {
    /// Looks at what the walk has been next to anyway; with `everything`, at
    /// all memory. What cannot be read is not there.
    pub(crate) fn of(stream: &Stream<'_>, origin: &Origin, everything: bool) -> Self {
        // In a mapped-ram file, or one that went by, the walk met no page.
        let has_records = stream.page_records().next().is_some();
        // Without a processor there is no guest to look for.
        let is_cheap = has_records && stream.vcpu_count() > 0;
        let (looked_at, depth) = match (everything, is_cheap) {
            (true, _) => (LookedAt::Everything, Depth::Everything),
            (false, true) => (LookedAt::Starts, Depth::PlainStarts),
            (false, false) => return Self { looked_at: LookedAt::Nothing, linux: None },
        };
        let linux = || {
            let layout = Layout::derive(stream, &layout::hints(&LayoutArgs::default(), origin)).ok()?;
            Linux::find(stream, PhysicalMemory::new(stream.ram()?, &layout), depth).ok()?
        };
        Self { looked_at, linux: linux().as_ref().map(LinuxReport::of) }
    }

    /// The same for people.
    pub(crate) fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
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
