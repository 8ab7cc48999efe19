//! Postcopy: pages that were to be sent again, and were not.

mod support;

use std::collections::BTreeSet;

use ramlift::{Command, SectionType, Stream, StreamOffset};
use support::cli::Workplace;
use support::fixtures::unpack;
use support::synth::{Block, Records, Synth, noise};

/// A page: its block's name, and its offset.
type PageName = (Vec<u8>, u64);

fn discards<'s>(stream: &'s Stream<'_>) -> impl DoubleEndedIterator<Item = &'s Command> {
    stream.commands().iter().filter(|command| command.name() == Some("POSTCOPY_RAM_DISCARD"))
}

fn last_discard(stream: &Stream<'_>) -> StreamOffset {
    discards(stream).next_back().unwrap().offset
}

/// The pages that the commands name.
fn discarded(stream: &Stream<'_>) -> BTreeSet<PageName> {
    let mut pages = BTreeSet::new();
    for data in discards(stream).map(|command| stream.command_data(command)) {
        let (name, ranges) = data[2..].split_at(data[1].into());
        for range in ranges[1..].chunks(16) {
            let [start, len] = [0, 8].map(|at| u64::from_be_bytes(range[at..at + 8].try_into().unwrap()));
            pages.extend((start..start + len).step_by(4096).map(|at| (name.to_vec(), at)));
        }
    }
    pages
}

/// The pages that were sent before all commands, and behind.
fn sent(stream: &Stream<'_>) -> (BTreeSet<PageName>, BTreeSet<PageName>) {
    let (ram, last) = (stream.ram().unwrap(), last_discard(stream));
    let (mut before, mut again) = (BTreeSet::new(), BTreeSet::new());
    for record in stream.page_records() {
        let pages = if record.payload < last { &mut before } else { &mut again };
        pages.insert((ram.block(record.block).unwrap().idstr.as_bytes().to_vec(), record.offset.0));
    }
    (before, again)
}

#[test]
fn pages_that_were_not_sent_again_are_said_to_be_old() {
    for name in ["pc-10.0-postcopy", "pc-11.1-postcopy"] {
        let whole = unpack(name);
        let stream = Stream::parse(&whole).unwrap();
        assert!(discarded(&stream).is_subset(&sent(&stream).1));
        assert!(stream.warnings().iter().all(|warning| !warning.is_loss));
        // Without the sections that have them, as without the connection of
        // postcopy-preempt.
        let mut bare = whole.clone();
        for section in stream.sections().iter().rev() {
            if section.kind == SectionType::Part && section.offset > last_discard(&stream) {
                bare.drain(section.offset.0 as usize..section.body_end.0 as usize + 5);
            }
        }
        let stream = Stream::parse(&bare).unwrap();
        let (before, again) = sent(&stream);
        let old = discarded(&stream).difference(&again).filter(|page| before.contains(page)).count();
        assert!(old > 100, "{name}: {old}");
        let losses: Vec<&str> = stream
            .warnings()
            .iter()
            .filter(|warning| warning.is_loss)
            .map(|warning| warning.text.as_str())
            .collect();
        assert!(losses.len() == 1 && losses[0].contains(&format!(" {old} pages ")), "{losses:?}");
        let place = Workplace::with(&bare);
        for once in [&[][..], &["--read-once"]] {
            let args = [&["extract", "stream", "-o", "out", "--force"], once].concat();
            let output = place.ramlift(&args).expect_code(3);
            assert!(output.stderr.contains(&format!(" {old} pages ")), "{}", output.stderr);
        }
    }
}

#[test]
fn ranges_that_nobody_has_cost_nothing() {
    let ranges = |pairs: &[(u64, u64)]| -> Vec<u8> {
        let numbers = pairs.iter().flat_map(|(start, len)| [start.to_be_bytes(), len.to_be_bytes()]);
        [b"\0\x08main.ram\0".as_slice(), &numbers.flatten().collect::<Vec<u8>>()].concat()
    };
    let stream = Synth::machine()
        .ram_start(&[Block::new("main.ram", 0x4000)])
        .ram_part(
            Records::new()
                .fill("main.ram", 0, 0)
                .next_fill(0x1000, 0)
                .next_fill(0x2000, 0)
                .next_data(0x3000, &noise(1, 4096)),
        )
        .command(6, &ranges(&[(0, u64::MAX); 4000]))
        .command(6, &ranges(&[(0x1000, 0x1000), (0x1000, 0x3000), (u64::MAX, u64::MAX)]))
        .command(6, b"\0\x04none\0")
        .command(6, b"\0\x08main.ram\0half")
        .ram_end(Records::new().fill("main.ram", 0x2000, 0))
        .finish();
    let stream = Stream::parse(&stream).unwrap();
    let losses: Vec<String> =
        stream.warnings().iter().filter(|warning| warning.is_loss).map(ToString::to_string).collect();
    assert_eq!(losses.len(), 2, "{losses:?}");
    assert!(losses[0].contains("cannot be read") && losses[1].contains(" 3 pages "), "{losses:?}");
}
