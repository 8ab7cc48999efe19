//! Channels of real migrations, merged with their main channel by a plain reader:
//! what the guest held.

use std::collections::{BTreeMap, BTreeSet};

use super::{LIVE, Whole, parse, ram_packets};
use crate::support::channel::{PAGE, channel};
use crate::support::fixtures::{read_json, unpack, unpack_channels};
use crate::support::hex::sha256;
use crate::support::naive::{Content, Naive};
use ramlift::{BlockOffset, MultifdCompression, PacketPage};
use serde_json::Value;

/// A migration as its channels have it, main channel first.
struct Migration {
    truth: Value,
    main: Naive,
    channels: Vec<Vec<u8>>,
}

impl Migration {
    fn load((name, channel_count): (&str, usize)) -> Self {
        let truth = read_json("manifest.json")[name].clone();
        let channels = unpack_channels(name);
        assert_eq!(channels.len(), channel_count, "{name}");
        for (channel, truth) in channels.iter().zip(truth["channels"].as_array().unwrap()) {
            assert_eq!(sha256(channel), truth["stream_sha256"], "{name}");
        }
        Self { truth, main: Naive::read(&unpack(name), PAGE), channels }
    }

    fn channels(&self) -> Vec<Whole<'_>> {
        self.channels.iter().map(|input| Whole::read(input)).collect()
    }

    /// For each sync point, how many records of the main channel are before.
    fn sync_points(&self) -> &[usize] {
        if self.main.flushes.is_empty() { &self.main.bodies } else { &self.main.flushes }
    }

    /// Guest memory: epoch by epoch, in each first the main channel and then
    /// the others in the order given.
    fn merge(&self, channels: &[&Whole<'_>]) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let blocks = self.main.blocks.iter();
        let mut images: BTreeMap<_, _> =
            blocks.map(|(name, len)| (name.clone(), vec![0xa5; *len as usize])).collect();
        let mut put = |block: &[u8], offset: u64, page: &[u8]| {
            images.get_mut(block).unwrap()[offset as usize..offset as usize + PAGE].copy_from_slice(page);
        };
        let mut records = self.main.records.iter().enumerate().peekable();
        for epoch in 0..=self.sync_points().len() {
            let end = self.sync_points().get(epoch).copied().unwrap_or(usize::MAX);
            while let Some((_, (block, offset, content))) = records.next_if(|(number, _)| *number < end) {
                assert_eq!(*content, Content::Fill(0));
                put(block, *offset, &[0; PAGE]);
            }
            for whole in channels {
                for packet in ram_packets(&whole.channel).filter(|packet| packet.epoch == epoch as u64) {
                    packet.pages().for_each(|page| put(packet.idstr, page.offset.0, whole.page(page)));
                }
            }
        }
        images
    }

    fn compare(&self, images: &BTreeMap<Vec<u8>, Vec<u8>>) {
        let truth = self.truth["blocks"].as_object().unwrap();
        assert!(truth.contains_key("pc.ram"));
        for (name, block) in truth {
            let image = &images[name.as_bytes()];
            assert_eq!(image.len() as u64, block["bytes"], "{name}");
            assert_eq!(sha256(image), block["sha256"], "{name}");
        }
    }
}

#[test]
fn merged_channels_are_what_the_guest_held() {
    for name in LIVE {
        let migration = Migration::load(name);
        let channels = migration.channels();
        for whole in &channels {
            assert_eq!(whole.channel.sync_count(), migration.sync_points().len() as u64, "{name:?}");
        }
        migration.compare(&migration.merge(&channels.iter().collect::<Vec<_>>()));
    }
}

#[test]
fn the_order_of_channels_within_an_epoch_is_of_no_importance() {
    for name in LIVE {
        let migration = Migration::load(name);
        let channels = migration.channels();
        migration.compare(&migration.merge(&channels.iter().rev().collect::<Vec<_>>()));
    }
}

#[test]
fn epochs_matter() {
    // The same pages without regard to epochs are not what the guest held:
    // else the tests above would show nothing.
    let migration = Migration::load(LIVE[0]);
    let channels = migration.channels();
    let merged = migration.merge(&channels.iter().collect::<Vec<_>>());
    let mut image = merged[b"pc.ram".as_slice()].clone();
    for whole in &channels {
        for packet in ram_packets(&whole.channel).filter(|packet| packet.idstr == b"pc.ram") {
            for page in packet.pages() {
                let at = page.offset.0 as usize;
                image[at..at + PAGE].copy_from_slice(whole.page(page));
            }
        }
    }
    assert_ne!(sha256(&image), migration.truth["blocks"]["pc.ram"]["sha256"]);
}

#[test]
fn channels_meet_at_each_section_or_at_each_flush() {
    for name in LIVE {
        let migration = Migration::load(name);
        let per_section = name.0.contains("7.2");
        assert_eq!(migration.main.flushes.is_empty(), per_section, "{name:?}");
        // The first of them stands in the START section, before all pages.
        assert_eq!(migration.sync_points()[0], 0, "{name:?}");
        assert!(migration.sync_points().len() > 5, "{name:?}");
    }
}

#[test]
fn a_page_comes_once_in_an_epoch_but_for_those_queued_twice_by_7_2() {
    for name in LIVE {
        let migration = Migration::load(name);
        let mut seen = BTreeSet::new();
        let (mut firsts, mut lasts, mut twice) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for whole in migration.channels() {
            for packet in ram_packets(&whole.channel) {
                let place = |page: PacketPage| (packet.epoch, packet.idstr.to_vec(), page.offset);
                firsts.extend(packet.pages().next().map(place));
                lasts.extend(packet.pages().last().map(place));
                twice.extend(packet.pages().map(place).filter(|page| !seen.insert(page.clone())));
            }
        }
        for (number, (block, offset, _)) in migration.main.records.iter().enumerate() {
            let epoch = migration.sync_points().iter().filter(|point| **point <= number).count();
            let place = (epoch as u64, block.clone(), BlockOffset(*offset));
            assert!(seen.insert(place), "{name:?}: {offset:#x} of the main channel comes twice");
        }
        let by_7_2 = migration.truth["qemu"].as_str().unwrap().starts_with("7.2.");
        assert_eq!(!twice.is_empty(), by_7_2, "{name:?}");
        assert!(twice.iter().all(|page| firsts.contains(page) && lasts.contains(page)), "{name:?}");
    }
}

#[test]
fn packets_of_7_2_say_sync_with_pages_and_sizes_of_nothing() {
    let migration = Migration::load(LIVE[0]);
    let (mut sync_with_pages, mut stale) = (0, 0);
    for whole in migration.channels() {
        for packet in ram_packets(&whole.channel) {
            let size_at = packet.at.0 as usize + 20;
            let size = &whole.input[size_at..size_at + 4];
            sync_with_pages += usize::from(packet.sync && packet.data_pages() > 0);
            stale += usize::from(packet.data_pages() == 0 && size != [0; 4]);
        }
    }
    assert!(sync_with_pages > 0 && stale > 0);
}

#[test]
fn zero_pages_come_in_packets_or_in_the_main_channel() {
    for (name, in_packets) in [(LIVE[3], true), (LIVE[2], true), (LIVE[4], false), (LIVE[0], false)] {
        let migration = Migration::load(name);
        let zero_pages: u64 = migration
            .channels()
            .iter()
            .flat_map(|whole| ram_packets(&whole.channel))
            .map(|packet| packet.zero_pages())
            .sum();
        assert_eq!(zero_pages > 0, in_packets, "{name:?}");
        assert_eq!(migration.main.records.is_empty(), in_packets, "{name:?}");
    }
}

#[test]
fn a_channel_says_whose_and_which_it_is_and_how_it_is_packed() {
    let of = |name: (&str, usize)| -> Vec<_> {
        let inputs = unpack_channels(name.0);
        inputs.iter().map(|input| parse(input).unwrap()).map(|c| (c.id(), c.compression())).collect()
    };
    assert_eq!(of(LIVE[3]), [(0, MultifdCompression::None), (1, MultifdCompression::None)]);
    assert_eq!(of(LIVE[1]), [(0, MultifdCompression::Zlib), (1, MultifdCompression::Zlib)]);
    assert_eq!(of(LIVE[2]), [(0, MultifdCompression::Zstd), (1, MultifdCompression::Zstd)]);
    assert_eq!(parse(&channel(7, &[])).unwrap().uuid(), [0xaa; 16]);
}
