//! Devices, headers and the description: damage costs what it reaches.

use super::{Damage, check_ram, damaged, decoded, live_stream, salvage};
use crate::support::fixtures::unpack;
use ramlift::Stream;

#[test]
fn damage_to_one_device_costs_no_other() {
    for name in ["q35-10.0-paused", "pc-7.2-live", "riscv64-virt-10.0"] {
        let bytes = unpack(name);
        let whole = Stream::parse(&bytes).unwrap();
        let all = decoded(&whole);
        let places: Vec<(u64, u64, u64)> = whole
            .devices()
            .map(|device| (device.section.offset.0, device.section.body.0, device.section.body_end.0))
            .collect();
        for (nth, (head, body, end)) in places.iter().enumerate() {
            // The header, the footer, all of it; some bytes of the body gone.
            let body_len = (end - body) as usize;
            let cases = [
                (Damage::Overwritten, *head as usize..*body as usize),
                (Damage::Zeros, *end as usize..*end as usize + 5),
                (Damage::Overwritten, *head as usize..*end as usize + 5),
                (Damage::Removed, *body as usize..*body as usize + body_len.min(7)),
            ];
            for (damage, place) in cases {
                let said = format!("{name} {} {damage:?} {place:x?}", all[nth]);
                let bad = damaged(&bytes, damage, place, nth as u64);
                let stream = salvage(&bad);
                let left = decoded(&stream);
                let expected: Vec<&String> =
                    all.iter().enumerate().filter(|(other, _)| *other != nth).map(|(_, name)| name).collect();
                let met: Vec<&String> = left.iter().filter(|name| **name != all[nth]).collect();
                assert_eq!(met, expected, "{said}: {:?}", stream.losses());
                assert!(
                    stream.warnings().iter().any(|warning| warning.is_loss) || left.len() < all.len(),
                    "{said}"
                );
                check_ram(&stream, &bytes);
            }
        }
    }
}

#[test]
fn zeros_over_the_header_of_a_section_are_no_end_of_the_stream() {
    let bytes = live_stream();
    let whole = Stream::parse(&bytes).unwrap();
    for section in &whole.sections()[2..8] {
        let head = section.offset.0 as usize;
        let bad = damaged(&bytes, Damage::Zeros, head..head + 3, 0);
        let stream = salvage(&bad);
        assert_eq!(decoded(&stream), decoded(&whole));
        let (read, all) = (stream.page_records().count(), whole.page_records().count());
        assert!(read + 40 >= all, "{read} of {all}: {:?}", stream.losses());
        assert!(!stream.losses().is_empty());
    }
}

#[test]
fn a_hole_over_many_devices_costs_those_alone() {
    let bytes = unpack("q35-10.0-paused");
    let whole = Stream::parse(&bytes).unwrap();
    let all = decoded(&whole);
    let devices: Vec<_> = whole.devices().map(|device| device.section.clone()).collect();
    for (first, last) in [(0, devices.len() - 2), (1, 20), (2, devices.len() - 3)] {
        let place = devices[first].offset.0 as usize + 3..devices[last].body.0 as usize;
        for damage in [Damage::Zeros, Damage::Overwritten, Damage::Removed] {
            let bad = damaged(&bytes, damage, place.clone(), 3);
            let stream = salvage(&bad);
            let expected: Vec<_> = [&all[..first], &all[last + 1..]].concat();
            assert_eq!(decoded(&stream), expected, "{damage:?}: {:?}", stream.losses());
        }
    }
    let synthetic = live_stream();
    let whole = Stream::parse(&synthetic).unwrap();
    let sections: Vec<_> = whole.devices().map(|device| device.section.clone()).collect();
    let place = sections[0].offset.0 as usize..sections[36].body.0 as usize;
    let bad = damaged(&synthetic, Damage::Zeros, place, 0);
    assert_eq!(decoded(&salvage(&bad)), decoded(&whole)[37..]);
}

#[test]
fn a_stream_cut_among_its_devices_gives_ram_and_the_devices_before() {
    let bytes = unpack("q35-10.0-paused");
    let whole = Stream::parse(&bytes).unwrap();
    let ends: Vec<u64> = whole.devices().map(|device| device.section.body_end.0 + 5).collect();
    let first = whole.devices().next().unwrap().section.offset.0;
    for cut in (first..bytes.len() as u64).step_by(997) {
        let stream = salvage(&bytes[..cut as usize]);
        check_ram(&stream, &bytes);
        let expected = ends.iter().filter(|end| **end <= cut).count();
        // The last one may be there too: its footer is followed by nothing.
        let met = stream.devices().count();
        assert!(met == expected || met + 1 == expected, "cut at {cut:#x}: {met} of {expected}");
        assert!(stream.losses().iter().any(|loss| loss.offset.0 + loss.len == cut), "cut at {cut:#x}");
    }
}

#[test]
fn a_description_cut_or_damaged_or_no_eof_costs_neither_ram_nor_devices() {
    let bytes = unpack("q35-10.0-paused");
    let whole = Stream::parse(&bytes).unwrap();
    let count = whole.devices().count();
    let text = whole.description().unwrap().offset.0 as usize;
    let eof = text - 6;
    let cases = [
        bytes[..eof].to_vec(),
        bytes[..text].to_vec(),
        bytes[..text + 1000].to_vec(),
        damaged(&bytes, Damage::Overwritten, text + 500..text + 600, 1),
        damaged(&bytes, Damage::Zeros, text + 500..text + 600, 1),
        damaged(&bytes, Damage::Overwritten, eof..text + 2, 1),
    ];
    for (nth, bad) in cases.iter().enumerate() {
        let stream = salvage(bad);
        check_ram(&stream, &bytes);
        assert_eq!(stream.devices().count(), count, "case {nth}: {:?}", stream.losses());
        assert!(stream.warnings().iter().any(|warning| warning.is_loss), "case {nth}");
    }
}

#[test]
fn a_damaged_head_is_survived_if_ram_follows() {
    for name in ["q35-10.0-paused", "pc-7.2-validate-uuid", "pc-7.2-live"] {
        let bytes = unpack(name);
        let whole = Stream::parse(&bytes).unwrap();
        let ram = whole.sections()[0].offset.0 as usize;
        for place in [0..8, 8..12, 10..20, 14..ram, 8..ram - 1, 0..ram] {
            let bad = damaged(&bytes, Damage::Overwritten, place.clone(), 5);
            if Stream::parse(&bad).is_ok() {
                continue;
            }
            let stream = salvage(&bad);
            check_ram(&stream, &bytes);
            assert_eq!(decoded(&stream), decoded(&whole), "{name} {place:x?}: {:?}", stream.losses());
        }
    }
}
