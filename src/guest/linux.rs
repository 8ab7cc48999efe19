//! A Linux guest: its VMCOREINFO, and what that leads to.
//!
//! VMCOREINFO may be in memory more than once: beside the kernel's own two
//! there may be those of kernels before it, and whatever else somebody put
//! there. One counts if the kernel it speaks of is there: it says where
//! `init_uts_ns` is, which holds the same release.
//!
//! ```text
//! struct uts_namespace { [kref, up to Linux 5.10] new_utsname name; … }
//! struct new_utsname   { char sysname[65], nodename[65], release[65], version[65], machine[65], … }
//! ```
//!
//! Source followed: Linux `include/uapi/linux/utsname.h`, `init/version.c`;
//! QEMU `hw/misc/vmcoreinfo.c`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use memchr::memmem;

use super::banner;
use super::search;
use super::vmcoreinfo::{self, NOTE_HEAD_LEN, VmcoreInfo};
use crate::error::Result;
use crate::physical::PhysicalMemory;
use crate::stream::Stream;
use crate::units::PhysicalAddress;
use crate::wire::limit;

/// How much of memory is looked at for VMCOREINFO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// Where pages begin that are in the stream as they are. Kernels since
    /// Linux 4.13 have it at the begin of a page. Of each some bytes are read,
    /// which stand behind its record's head.
    PlainStarts,
    /// Where pages begin, those too that have to be decoded.
    Starts,
    /// Everywhere.
    Everything,
}

/// Why VMCOREINFO is taken for the running kernel's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Evidence {
    /// `init_uts_ns` is where it says, with its release.
    Kernel,
    /// The guest has given its place to QEMU's vmcoreinfo device, but what it
    /// says of the kernel is not so.
    Device,
    /// Nothing but itself.
    Itself,
}

/// A Linux kernel that runs in the guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Linux {
    /// What it tells the readers of its dumps.
    pub vmcoreinfo: VmcoreInfo,
    /// Where the text of that is in memory.
    pub at: PhysicalAddress,
    /// Why it is taken for the kernel's.
    pub evidence: Evidence,
    /// What `uname` says.
    pub uts: Option<Uts>,
    /// The line that the kernel begins its log with.
    pub banner: Option<String>,
    /// Virtual less physical address of the kernel's image; wraps.
    image_offset: Option<u64>,
}

/// What `uname` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uts {
    /// The host's name.
    pub nodename: String,
    /// The kernel's release.
    pub release: String,
    /// The kernel's build: `#1 SMP …`.
    pub version: String,
    /// The kind of machine.
    pub machine: String,
}

impl Linux {
    /// The kernel that runs in a guest; `None` if it tells nothing of itself
    /// where `depth` looks, or is no Linux.
    ///
    /// # Errors
    /// As [`Ram::page`](crate::Ram::page).
    pub fn find(stream: &Stream<'_>, memory: PhysicalMemory<'_, '_>, depth: Depth) -> Result<Option<Self>> {
        let told = match note_of_device(stream) {
            Some(at) => Self::at(memory, at, Evidence::Device)?,
            None => None,
        };
        let linux = match told {
            Some(linux) if linux.evidence == Evidence::Kernel => Some(linux),
            told => Self::search(memory, depth, told)?,
        };
        linux.map(|linux| linux.with_banner(memory)).transpose()
    }

    /// The first that is confirmed, else `told`, else that at the lowest
    /// address.
    fn search(memory: PhysicalMemory<'_, '_>, depth: Depth, told: Option<Self>) -> Result<Option<Self>> {
        let unconfirmed: Mutex<Option<Self>> = Mutex::new(None);
        let tried = AtomicUsize::new(0);
        let is_new = || tried.fetch_add(1, Ordering::Relaxed) < limit::VMCOREINFO_CANDIDATES;
        let look = |page: PhysicalAddress, bytes: &[u8]| {
            for offset in candidates(bytes, depth) {
                let Some(at) = page.checked_add(offset as u64).filter(|_| is_new()) else { break };
                match Self::at(memory, at, Evidence::Itself)? {
                    Some(linux) if linux.evidence == Evidence::Kernel => return Ok(Some(linux)),
                    Some(linux) => {
                        let mut lowest = unconfirmed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                        if lowest.as_ref().is_none_or(|lowest| linux.at < lowest.at) {
                            *lowest = Some(linux);
                        }
                    }
                    None => {}
                }
            }
            Ok(None)
        };
        let confirmed = search::in_pages(memory, depth != Depth::PlainStarts, look)?;
        let unconfirmed = || unconfirmed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        Ok(confirmed.or(told).or_else(unconfirmed))
    }

    /// The kernel whose VMCOREINFO is at `at`, which `evidence` speaks for.
    fn at(memory: PhysicalMemory<'_, '_>, at: PhysicalAddress, evidence: Evidence) -> Result<Option<Self>> {
        let Some(vmcoreinfo) = VmcoreInfo::read(&memory, at)? else { return Ok(None) };
        let confirmed = confirm(memory, &vmcoreinfo)?;
        let evidence = if confirmed.is_some() { Evidence::Kernel } else { evidence };
        let (uts, image_offset) = confirmed.unzip();
        Ok(Some(Self { vmcoreinfo, at, evidence, uts, banner: None, image_offset }))
    }

    /// Looks for the banner in the kernel's image, where it stands whole.
    fn with_banner(self, memory: PhysicalMemory<'_, '_>) -> Result<Self> {
        let Some((start, uts)) = self.image_start().zip(self.uts.as_ref()) else { return Ok(self) };
        /// Where pages of any kernel begin, and pages of RAM that is not there.
        const PAGE: u64 = 4096;
        let mut piece = vec![0; 1 << 20];
        let mut at = start;
        while at.0 - start.0 < limit::KERNEL_IMAGE_LEN {
            let len = memory.read(at, &mut piece)?;
            let bytes = piece.get(..len).unwrap_or_default();
            if let Some(banner) = banner::find(bytes, uts) {
                return Ok(Self { banner: Some(banner), ..self });
            }
            let step = match len < piece.len() {
                // Behind a page that is not there.
                true => (len as u64 / PAGE + 1) * PAGE,
                // A banner that stands across two pieces is whole in the next.
                false => (len - banner::LONGEST) as u64,
            };
            let Some(next) = at.checked_add(step) else { break };
            at = next;
        }
        Ok(self)
    }

    /// Where the kernel's image begins in memory: `_stext`.
    pub fn image_start(&self) -> Option<PhysicalAddress> {
        let offset = self.image_offset?;
        Some(PhysicalAddress(self.vmcoreinfo.symbol("_stext")?.wrapping_sub(offset)))
    }

    /// Virtual less physical address of the kernel's image; wraps. `None` if
    /// nothing confirms it.
    pub fn image_offset(&self) -> Option<u64> {
        self.image_offset
    }

    /// Where a kernel of x86-64 is in memory less where it was linked to be:
    /// its `phys_base`. Wraps.
    pub fn phys_base(&self) -> Option<u64> {
        self.vmcoreinfo.number("phys_base")
    }
}

/// Where the text of VMCOREINFO may begin in a page.
fn candidates(bytes: &[u8], depth: Depth) -> Vec<usize> {
    match depth {
        Depth::PlainStarts | Depth::Starts => vmcoreinfo::at_page_start(bytes).into_iter().collect(),
        Depth::Everything => memmem::find_iter(bytes, vmcoreinfo::HEAD).collect(),
    }
}

/// Where the guest has told QEMU's vmcoreinfo device that its note is: the
/// place of the note's text.
fn note_of_device(stream: &Stream<'_>) -> Option<PhysicalAddress> {
    const FW_CFG_VMCOREINFO_FORMAT_ELF: u64 = 1;
    let device = stream.devices().find(|device| device.section.handler.idstr == "vmcoreinfo")?;
    let state = device.decode().ok()?;
    let number = |name: &str| state.field(name)?.value.as_u64();
    let is_elf = number("vmcoreinfo.guest_format") == Some(FW_CFG_VMCOREINFO_FORMAT_ELF);
    let paddr = number("vmcoreinfo.paddr").filter(|paddr| is_elf && *paddr != 0)?;
    PhysicalAddress(paddr).checked_add(NOTE_HEAD_LEN as u64)
}

/// What `uname` says in the kernel that VMCOREINFO speaks of, and how far the
/// virtual addresses of its image are from physical ones. `None` if there is no
/// such kernel in memory.
fn confirm(memory: PhysicalMemory<'_, '_>, info: &VmcoreInfo) -> Result<Option<(Uts, u64)>> {
    let Some(symbol) = info.symbol("init_uts_ns") else { return Ok(None) };
    for offset in image_offsets(info) {
        if let Some(uts) = Uts::read(memory, PhysicalAddress(symbol.wrapping_sub(offset)))?
            && uts.release == info.os_release()
        {
            return Ok(Some((uts, offset)));
        }
    }
    Ok(None)
}

/// How far virtual addresses of the image may be from physical ones: what the
/// kernel says, then what is so on machines where it does not vary.
fn image_offsets(info: &VmcoreInfo) -> impl Iterator<Item = u64> {
    /// x86-64: `__START_KERNEL_map`.
    const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
    let told = [
        info.number("phys_base").map(|base| START_KERNEL_MAP.wrapping_sub(base)),
        info.number("kimage_voffset"),
        info.number("va_kernel_pa_offset"),
    ];
    // POWER; LoongArch; 32-bit x86 and Arm; s390x.
    let fixed = [0xc000_0000_0000_0000, 0x9000_0000_0000_0000, 0xc000_0000, 0];
    told.into_iter().flatten().chain(fixed)
}

impl Uts {
    /// Reads the name in a `struct uts_namespace`; `None` if there is none.
    fn read(memory: PhysicalMemory<'_, '_>, at: PhysicalAddress) -> Result<Option<Self>> {
        /// `__NEW_UTS_LEN`, and its NUL.
        const LEN: usize = 65;
        let mut bytes = [0; 8 + 5 * LEN];
        let len = memory.read(at, &mut bytes)?;
        let bytes = bytes.get(..len).unwrap_or_default();
        let Some(start) = [0, 4, 8]
            .into_iter()
            .find(|start| bytes.get(*start..).is_some_and(|bytes| bytes.starts_with(b"Linux\0")))
        else {
            return Ok(None);
        };
        let field = |nth: usize| {
            let field = bytes.get(start + nth * LEN..)?.get(..LEN)?;
            let text = field.split(|byte| *byte == 0).next()?;
            Some(text.escape_ascii().to_string())
        };
        let fields = (field(1), field(2), field(3), field(4));
        let (Some(nodename), Some(release), Some(version), Some(machine)) = fields else { return Ok(None) };
        Ok(Some(Self { nodename, release, version, machine }))
    }
}
