//! Guest-physical memory: where it is, and files of it.

use std::ops::Range;

mod support;

use support::cli::Workplace;
use support::fixtures::{unpack, unpack_file};
use support::physical::{self, Memory, avml, elf, kdump, lime, pages};

/// The ranges that `ramlift layout` has: address, length, block, offset.
fn layout(stream: &[u8], further: &[&str]) -> Vec<(u64, u64, String, u64)> {
    let args = [&["layout", "stream", "--json"], further].concat();
    let json = Workplace::with(stream).ramlift(&args).json();
    let number = |region: &serde_json::Value, key: &str| region[key].as_u64().unwrap();
    let region = |region: &serde_json::Value| {
        let [address, len, offset] = ["address", "length", "offset"].map(|key| number(region, key));
        (address, len, region["idstr"].as_str().unwrap().to_owned(), offset)
    };
    json["regions"].as_array().unwrap().iter().map(region).collect()
}

/// As they are, those of one block that follow each other put together.
fn check_layout(stream: &[u8], expected: &[(Range<u64>, &str, u64)]) {
    let mut ranges: Vec<(Range<u64>, String, u64)> = Vec::new();
    for (address, len, idstr, offset) in layout(stream, &[]) {
        match ranges.last_mut() {
            Some((range, last, from))
                if range.end == address && *last == idstr && offset - *from == address - range.start =>
            {
                range.end += len;
            }
            _ => ranges.push((address..address + len, idstr, offset)),
        }
    }
    let expected: Vec<_> =
        expected.iter().map(|(range, idstr, offset)| (range.clone(), (*idstr).to_owned(), *offset)).collect();
    assert_eq!(ranges, expected);
}

const MIB: u64 = 1 << 20;

#[test]
fn ram_shows_where_no_rom_is() {
    // Firmware of 64 KiB, the board's ROM for devices, no VGA; found in QEMU's own
    // dump of this guest.
    check_layout(
        &unpack_file("cpu/x86_64-7.2.zst"),
        &[
            (0..0xc_0000, "pc.ram", 0),
            (0xe_0000..0xf_0000, "pc.ram", 0xe_0000),
            (MIB..16 * MIB, "pc.ram", MIB),
        ],
    );
}

#[test]
fn boards_have_their_ram_where_qemu_has_it() {
    let at = 0x4000_0000;
    check_layout(&unpack_file("cpu/aarch64-10.0.zst"), &[(at..at + 16 * MIB, "mach-virt.ram", 0)]);
    let at = 0x8000_0000;
    check_layout(&unpack_file("cpu/riscv64-10.0.zst"), &[(at..at + 16 * MIB, "riscv_virt_board.ram", 0)]);
    check_layout(&unpack_file("cpu/s390x-10.0.zst"), &[(0..16 * MIB, "s390.ram", 0)]);
    check_layout(&unpack_file("cpu/ppc64-10.0.zst"), &[(0..256 * MIB, "ppc_spapr.ram", 0)]);
}

#[test]
fn a_stream_without_machine_type_and_description_is_an_old_pcs() {
    let stream = unpack("pc-5.2-machine-2.2-no-vmdesc");
    let ranges = layout(&stream, &[]);
    assert_eq!(ranges.last(), Some(&(MIB, 15 * MIB, "pc.ram".to_owned(), MIB)));
    let said = Workplace::with(&stream).ramlift(&["layout", "stream"]);
    assert!(said.text().contains("i440FX"), "{}", said.text());
}

/// Memory as each format has it, for a stream.
fn memory(place: &Workplace, format: &str, further: &[&str]) -> Vec<u8> {
    let name = format!("{format}{}", further.join(""));
    let args = ["extract", "stream", "--quiet", "--format", format, "-o", &name];
    place.ramlift(&[&args[..], further].concat()).expect_code(0);
    place.read(&name)
}

/// Compares all formats with the ELF core, and that with the raw image.
fn check_formats(stream: &[u8], is_big_endian: bool, is_64: bool) {
    let place = Workplace::with(stream);
    let core = elf(&memory(&place, "elf", &[]));
    let ranges: Vec<Range<u64>> = core.iter().map(|(at, bytes)| *at..*at + bytes.len() as u64).collect();
    let expected = pages(&core);
    assert!(!expected.is_empty(), "there is something to compare");
    assert!(pages(&physical::raw(&memory(&place, "raw", &[]), &ranges)) == expected, "raw");
    assert!(pages(&lime(&memory(&place, "lime", &[]))) == expected, "LiME");
    check_avml(&place, &expected);
    let notes = physical::notes(&place.read("elf")).to_vec();
    for method in ["zlib", "zstd"] {
        let dump = kdump(&memory(&place, "kdump", &["--compress", method]), is_big_endian, is_64);
        assert!(pages(&dump.memory) == expected, "kdump, {method}");
        assert!(dump.notes == notes, "the notes of the core");
        let known: u64 = ranges
            .iter()
            .map(|range| range.end.div_ceil(dump.block_len) - range.start / dump.block_len)
            .sum();
        assert_eq!(dump.known.len() as u64, known);
    }
}

fn check_avml(place: &Workplace, expected: &Memory) {
    let image = memory(place, "avml", &[]);
    assert!(pages(&avml(&image)) == *expected, "AVML");
}

#[test]
fn all_formats_have_the_same_memory() {
    check_formats(&unpack("q35-11.1-live"), false, false);
    check_formats(&unpack_file("cpu/x86_64-7.2.zst"), false, true);
    check_formats(&unpack_file("cpu/arm-7.2.zst"), false, false);
    check_formats(&unpack_file("cpu/s390x-10.0.zst"), true, true);
    check_formats(&unpack_file("cpu/ppc64-10.0.zst"), true, true);
    check_formats(&unpack("pc-11.1-mapped-ram"), false, false);
    check_formats(&unpack("pc-7.2-xbzrle"), false, false);
}

#[test]
fn files_do_not_depend_on_the_number_of_threads() {
    let place = Workplace::with(&unpack("q35-11.1-live"));
    for format in [&["avml"][..], &["kdump", "--compress", "zlib"], &["kdump", "--compress", "zstd"]] {
        let files = ["1", "2", "7"]
            .map(|threads| memory(&place, format[0], &[&format[1..], &["--threads", threads]].concat()));
        assert!(files[0] == files[1] && files[0] == files[2], "{format:?}");
    }
}

#[test]
fn zeros_of_a_compressed_dump_share_their_data() {
    let place = Workplace::with(&unpack_file("cpu/ppc64-10.0.zst"));
    // 256 MiB, nearly all zero.
    assert!(memory(&place, "kdump", &[]).len() < 1 << 20);
}

#[test]
fn a_compressed_dump_says_what_machine_it_is_of() {
    for (guest, name, order, is_64, vcpus) in [
        ("x86_64-7.2", "x86_64", false, true, 2),
        ("i386-7.2", "i686", false, false, 1),
        ("s390x-10.0", "s390x", true, true, 1),
        ("ppc64-10.0", "ppc64", true, true, 1),
        ("aarch64-10.0", "aarch64", false, true, 2),
    ] {
        let place = Workplace::with(&unpack_file(&format!("cpu/{guest}.zst")));
        let dump = kdump(&memory(&place, "kdump", &[]), order, is_64);
        assert_eq!((dump.utsname[4].as_str(), dump.vcpus), (name, vcpus));
    }
}
