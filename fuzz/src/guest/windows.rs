//! A kernel of Windows in a guest's memory: as it is, and with changes.

use arbitrary::{Result, Unstructured};
use ramlift::guest::Pdb;

use super::super::kernel::PAGE;
use super::super::nt::{
    BASE, DEBUG, EXPORTS, Guest, HEADERS, IMAGE_LEN, KDBG, LAB_TEXT, LSTAR, NAMES, OPTIONAL, ROOT, RSDS,
    image,
};
use super::super::vcpu::Vcpu;
use super::{DEPTHS, look_at_kernels, with_memory};

/// Where a vCPU in a program has its page tables, and the kernel its structure of
/// the processor, in which those of the kernel are.
const OTHER_ROOT: u64 = 0x80_0000;
const KPCR: u64 = 0xffff_f805_0f00_0000;
const KPCR_PAGE: u64 = 0x90_0000;

pub fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let mut image = image();
    let is_changed = u.ratio(3, 4)?;
    if is_changed {
        for _ in 0..u.int_in_range(1..=6)? {
            let parts = [
                0,
                0x3c,
                HEADERS,
                OPTIONAL,
                OPTIONAL + 112,
                DEBUG,
                RSDS,
                EXPORTS,
                EXPORTS + 0x80,
                NAMES,
                KDBG,
            ];
            let at = u.choose(&parts)? + u.int_in_range(0..=80)?;
            match u.int_in_range(0..=3)? {
                0 => image = image.put(at, &[u.arbitrary()?]),
                1 => image = image.put(at & !3, &u.arbitrary::<[u8; 4]>()?),
                2 => {
                    image = image
                        .put(at & !3, &u.choose(&[0_u32, 1, IMAGE_LEN, 0x7fff_ffff, u32::MAX])?.to_le_bytes())
                }
                _ => drop(image.0.remove(&(at / PAGE * PAGE))),
            }
        }
    }
    if image.0.is_empty() {
        return Ok(());
    }
    let mut guest = Guest::with(&image);
    let is_shadowed = u.arbitrary()?;
    // Flags stand beside the address.
    let flags = *u.choose(&[0, 0, 0x18, 0xfff, 1 << 63, 1 << 60])?;
    let mut vcpu = Vcpu { lstar: LSTAR, cr3: ROOT | flags, ..Vcpu::default() };
    if is_shadowed {
        // The kernel has two tables: those of a program lead to its own.
        vcpu.cr3 = OTHER_ROOT;
        if u.arbitrary()? {
            vcpu.gs_base = KPCR
        } else {
            vcpu.kernel_gs_base = KPCR
        }
        guest.map(OTHER_ROOT, KPCR + 0x7000, KPCR_PAGE);
        guest.memory = guest.memory.word(KPCR_PAGE, ROOT);
    }
    let mut vcpus = vec![vcpu];
    if u.ratio(1, 4)? {
        // Others that lead nowhere, or to the same.
        let mut place = |right: u64| Ok(if u.ratio(1, 2)? { right } else { u.arbitrary()? });
        vcpus.insert(
            0,
            Vcpu { lstar: place(LSTAR - PAGE)?, cr3: place(ROOT)?, gs_base: place(KPCR)?, ..Vcpu::default() },
        );
    }
    let count = vcpus.len();
    let synth = (0..).zip(vcpus).fold(guest.memory.stream(), |synth, (nth, vcpu)| vcpu.put(synth, nth));
    with_memory(&synth.finish(), true, |stream, memory| {
        let found = look_at_kernels(stream, memory, &DEPTHS);
        assert!(found.linux.iter().all(Option::is_none));
        if is_changed {
            return;
        }
        let windows = found.windows.expect("it is there");
        assert_eq!((windows.base, windows.image_len), (BASE, IMAGE_LEN.into()));
        assert!(count > 1 || windows.page_tables.0 == ROOT);
        assert_eq!((windows.build, windows.build_lab.as_deref()), (Some(19041), Some(LAB_TEXT)));
        assert_eq!(windows.kdbg.map(|kdbg| kdbg.address), Some(BASE + KDBG));
        let name = "ntkrnlmp.pdb".to_owned();
        let guid = "123456789ABCDEF00102030405060708".to_owned();
        assert_eq!(windows.pdb, Some(Pdb { name, guid, age: 2 }));
    });
    Ok(())
}
