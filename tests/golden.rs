//! Real streams: what comes out is what QEMU's memory held.
//!
//! `tests/data` holds streams of real QEMUs, and `manifest.json` there says
//! what each RAM block held at the instant its stream ends, as read from the
//! QEMU process itself. `tests/data/README.md` tells where each is from.

mod support;

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};
use support::cli::{Output, Workplace, entries_of};
use support::fixtures::{read_json, unpack};
use support::hex::{hex, sha256};

/// Where VGA memory and ROMs hide RAM from the guest: QEMU's own dump of
/// guest-physical memory shows something else there.
const WINDOW: std::ops::Range<usize> = 0xa0000..0x100000;

/// A committed stream, unpacked into a directory of its own.
struct Golden {
    truth: Value,
    place: Workplace,
}

impl Golden {
    fn unpack(name: &str) -> Self {
        let truth = manifest()[name].clone();
        let stream = unpack(name);
        assert_eq!(stream.len() as u64, truth["stream_bytes"]);
        Self { truth, place: Workplace::with(&stream) }
    }

    fn extract(&self) -> Output {
        self.place.ramlift(&["extract", "stream", "-o", "out", "--quiet"])
    }

    fn info(&self) -> Value {
        self.place.ramlift(&["info", "--json", "stream"]).json()
    }

    /// Compares each image with the truth. Gives the number of those that
    /// the truth has.
    fn compare_images(&self) -> usize {
        let manifest = self.place.json("out/manifest.json");
        let images = manifest["blocks"].as_array().unwrap();
        let names: Vec<&str> = images.iter().map(|image| image["idstr"].as_str().unwrap()).collect();
        let truth = self.truth["blocks"].as_object().unwrap();
        for name in truth.keys() {
            assert!(names.contains(&name.as_str()), "no image of {name}");
        }
        for image in images {
            let name = image["idstr"].as_str().unwrap();
            let Some(block) = truth.get(name) else { continue };
            assert_eq!(image["used_length"], block["bytes"], "{name}");
            if self.is_left_out(name) {
                assert_eq!((&image["status"], &image["file"]), (&"absent".into(), &Value::Null), "{name}");
                continue;
            }
            assert_eq!((&image["status"], &image["absent_pages"]), (&"complete".into(), &0.into()), "{name}");
            let file = self.place.join("out").join(image["file"].as_str().unwrap());
            assert_eq!(sha256_of_file(&file), block["sha256"], "{name}");
        }
        self.compare_physical_memory();
        truth.len()
    }

    /// Whether the stream leaves a block out on purpose.
    fn is_left_out(&self, block: &str) -> bool {
        self.truth["not_in_stream"].as_array().is_some_and(|names| names.iter().any(|name| name == block))
    }

    /// Compares main memory with QEMU's own dump of it.
    fn compare_physical_memory(&self) {
        let key = format!("guest_physical_outside_{:#x}_{:#x}_sha256", WINDOW.start, WINDOW.end);
        let Some(truth) = self.truth.get(key) else { return };
        let Some(mut memory) = self.main_memory() else { return };
        self.write_lost_words(&mut memory);
        memory.drain(WINDOW);
        assert_eq!(sha256(&memory), *truth, "guest-physical memory");
    }

    /// Main memory, where it is one block that begins at address 0.
    fn main_memory(&self) -> Option<Vec<u8>> {
        let image = ["out/pc.ram", "out/objects/pc.ram"].map(|name| self.place.join(name));
        let memory = fs::read(image.iter().find(|path| path.exists())?).unwrap();
        assert_eq!(memory.len() as u64, self.truth["guest_physical_bytes"]);
        Some(memory)
    }

    /// Two streams lack what the guest wrote last to pages that the manifest
    /// names, by a fault of QEMU: with these words, and no others, memory is
    /// what QEMU's was.
    fn write_lost_words(&self, memory: &mut [u8]) {
        let Some(lost) = self.truth.get("lost_writes") else { return };
        assert_eq!(sha256(&*memory), lost["sha256_of_the_stream"]);
        let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
        let [first, last, step] = [0, 1, 2].map(|nth| number(&lost["pages"][nth]));
        let word = u32::try_from(lost["written"].as_u64().unwrap()).unwrap().to_le_bytes();
        for page in (first..=last).step_by(step) {
            for at in lost["words_at"].as_array().unwrap() {
                memory[page * 4096 + number(at)..][..4].copy_from_slice(&word);
            }
        }
    }

    fn undecoded_devices(&self) -> Vec<Value> {
        let state = self.place.json("out/state.json");
        let devices = state["devices"].as_array().unwrap();
        devices
            .iter()
            .filter(|device| device["status"] != "decoded")
            .map(|device| device["name"].clone())
            .collect()
    }
}

/// What `info` has to say of a stream.
#[derive(Clone, Copy)]
struct Facts {
    machine: Option<&'static str>,
    page_size: u64,
    vcpus: u64,
    is_live: bool,
}

/// A stream of a machine with 4 KiB pages and one vCPU, taken in one pass.
fn paused(machine: &'static str) -> Facts {
    Facts { machine: Some(machine), page_size: 4096, vcpus: 1, is_live: false }
}

/// The same, the guest having run meanwhile.
fn live(machine: &'static str) -> Facts {
    Facts { is_live: true, ..paused(machine) }
}

/// Checks everything on a stream that is complete.
#[track_caller]
fn check(name: &str, facts: Facts) {
    let golden = Golden::unpack(name);
    let output = golden.extract().expect_code(0);
    assert_eq!(output.stderr, "");
    assert!(golden.compare_images() > 0 || golden.truth.get("guest_physical_bytes").is_some());
    assert_eq!(golden.undecoded_devices(), Vec::<Value>::new());
    check_facts(&golden.info(), facts);
}

#[track_caller]
fn check_facts(info: &Value, facts: Facts) {
    assert_eq!(info["machine"].as_str(), facts.machine);
    assert_eq!(info["page_size"], facts.page_size);
    assert_eq!(info["vcpus"], facts.vcpus);
    let passes = info["passes"].as_u64().unwrap();
    assert_eq!(passes > 1, facts.is_live, "{passes} passes");
    let resent: u64 =
        info["blocks"].as_array().unwrap().iter().map(|block| block["resent_pages"].as_u64().unwrap()).sum();
    assert_eq!(resent > 0, facts.is_live, "{resent} pages were sent again");
}

/// Checks a stream that this version does not read: it says where and why,
/// and leaves nothing behind.
#[track_caller]
fn check_refused(name: &str, texts: &[&str]) {
    let golden = Golden::unpack(name);
    let output = golden.extract().expect_code(1);
    for text in texts {
        assert!(output.stderr.contains(text), "{}", output.stderr);
    }
    assert_eq!(entries_of(golden.place.path()), ["stream"]);
}

fn manifest() -> Value {
    read_json("manifest.json")
}

fn sha256_of_file(path: &Path) -> String {
    let mut file = File::open(path).unwrap();
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return hex(&hasher.finalize()),
            len => hasher.update(&buffer[..len]),
        }
    }
}

// One pass over RAM, the guest being stopped.

#[test]
fn reads_pc_of_qemu_5_2() {
    check("pc-5.2-paused", paused("pc-i440fx-5.2"));
}

#[test]
fn reads_pc_of_qemu_7_2() {
    check("pc-7.2-paused", paused("pc-i440fx-7.2"));
}

#[test]
fn reads_pc_of_qemu_10_0() {
    check("pc-10.0-paused", paused("pc-i440fx-10.0"));
}

#[test]
fn reads_pc_of_qemu_11_1() {
    check("pc-11.1-paused", paused("pc-i440fx-11.1"));
}

#[test]
fn reads_q35() {
    check("q35-10.0-paused", Facts { vcpus: 2, ..paused("pc-q35-10.0") });
}

#[test]
fn reads_microvm() {
    check("microvm-10.0", paused("microvm"));
}

#[test]
fn reads_what_virsh_dump_writes() {
    check("libvirt-12.8-dump", paused("pc-i440fx-11.1"));
}

#[test]
fn reads_virtio_devices() {
    check("pc-10.0-virtio", paused("pc-i440fx-10.0"));
}

#[test]
fn reads_virtio_devices_in_use() {
    check("pc-7.2-virtio-set-up", paused("pc-i440fx-7.2"));
    check("pc-10.0-virtio-set-up", paused("pc-i440fx-10.0"));
    check("pc-10.0-virtio-in-flight", paused("pc-i440fx-10.0"));
    check("q35-10.0-virtio-set-up", paused("pc-q35-10.0"));
    check("microvm-10.0-virtio-set-up", paused("microvm"));
    check("aarch64-10.0-virtio-set-up", paused("virt-10.0"));
}

/// No driver has plugged memory in: what the device could have is not sent.
#[test]
fn reads_a_memory_device_that_stands_before_ram() {
    let golden = Golden::unpack("pc-10.0-virtio-mem");
    let output = golden.extract().expect_code(3);
    assert!(output.stderr.contains("0000:00:02.0/vm0"), "{}", output.stderr);
    assert!(golden.compare_images() > 0);
    assert_eq!(golden.undecoded_devices(), Vec::<Value>::new());
    check_facts(&golden.info(), paused("pc-i440fx-10.0"));
    let early = &golden.place.json("out/state.json")["devices"][0];
    assert_eq!(early["name"], "0000:00:02.0/virtio-mem-device-early");
    assert_eq!(early["state"]["tmp"]["region_size"], 32 << 20);
    assert_eq!((&early["state"]["size"], &early["state"]["bitmap"]), (&0.into(), &serde_json::json!([0])));
}

#[test]
fn reads_dirty_bitmaps() {
    check("pc-7.2-dirty-bitmaps", paused("pc-i440fx-7.2"));
    check("pc-10.0-dirty-bitmaps", paused("pc-i440fx-10.0"));
}

#[test]
fn reads_block_devices() {
    let golden = Golden::unpack("pc-7.2-block");
    let output = golden.extract().expect_code(0);
    assert!(output.stderr.contains("--block-devices"), "{}", output.stderr);
    assert!(golden.compare_images() > 0);
    assert_eq!(golden.undecoded_devices(), Vec::<Value>::new());
    check_facts(&golden.info(), paused("pc-i440fx-7.2"));
}

#[test]
fn reads_usb_devices() {
    check("pc-11.1-usb", paused("pc-i440fx-11.1"));
}

#[test]
fn gives_a_block_with_a_path_for_a_name_a_file_in_a_directory() {
    check("pc-10.0-canonical-path", paused("pc-i440fx-10.0"));
}

// Several passes: the last record of a page counts.

#[test]
fn keeps_what_a_live_guest_of_qemu_7_2_wrote_last() {
    check("pc-7.2-live", live("pc-i440fx-7.2"));
}

#[test]
fn keeps_what_a_live_guest_of_qemu_11_1_wrote_last() {
    check("pc-11.1-live", live("pc-i440fx-11.1"));
}

#[test]
fn keeps_what_a_live_guest_with_two_vcpus_wrote_last() {
    check("q35-11.1-live", Facts { vcpus: 2, ..live("pc-q35-11.1") });
}

#[test]
fn keeps_what_a_live_guest_wrote_last_to_blocks_in_another_order() {
    check("pc-10.0-numa-live", live("pc-i440fx-10.0"));
}

// Neither configuration nor footers.

#[test]
fn reads_a_stream_without_configuration_and_footers() {
    check("pc-7.2-machine-2.3-live", Facts { machine: None, ..live("") });
}

/// Its guest ran with RAM of a multiple of 256 KiB under software emulation,
/// where QEMU misses writes: 256 pages hold what they held in the second pass.
#[test]
fn keeps_what_is_in_a_stream_that_lacks_writes() {
    check("pc-5.2-machine-2.3", Facts { machine: None, ..live("") });
}

/// What streams of machine types up to 2.2 give: RAM, and a warning.
#[track_caller]
fn check_without_description(name: &str, facts: Facts, undecoded: usize) {
    let golden = Golden::unpack(name);
    let output = golden.extract().expect_code(0);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    assert!(output.stderr.contains("description"), "{}", output.stderr);
    assert!(golden.compare_images() > 0 || golden.truth.get("guest_physical_bytes").is_some());
    assert_eq!(golden.undecoded_devices().len(), undecoded);
    assert!(!golden.place.join("out/desc.json").exists());
    let info = golden.info();
    assert_eq!(info["description"], Value::Null);
    assert_eq!(info["warnings"].as_array().unwrap().len(), 1);
    check_facts(&info, facts);
}

#[test]
fn gives_ram_of_a_stream_without_configuration_footers_and_description() {
    // Without the description, nothing says where its devices begin and end.
    check_without_description("pc-7.2-machine-2.2", Facts { machine: None, vcpus: 0, ..paused("") }, 0);
}

/// As the other stream that lacks writes.
#[test]
fn gives_ram_of_a_live_stream_without_configuration_footers_and_description() {
    let facts = Facts { machine: None, vcpus: 0, ..live("") };
    check_without_description("pc-5.2-machine-2.2-no-vmdesc", facts, 0);
}

#[test]
fn finds_devices_by_their_footers_where_there_is_no_description() {
    check_without_description("pc-10.0-no-vmdesc", paused("pc-i440fx-10.0"), 30);
}

// Postcopy: devices in a package, then pages of the guest that was stopped.

#[test]
fn pages_sent_by_postcopy_are_the_last_ones() {
    check_without_description("pc-10.0-postcopy", live("pc-i440fx-10.0"), 30);
    check_without_description("pc-11.1-postcopy", live("pc-i440fx-11.1"), 30);
}

// A background snapshot: of the instant at which it begins.

#[test]
fn pages_in_the_order_in_which_the_guest_writes_to_them_are_found() {
    let golden = Golden::unpack("pc-10.0-snapshot");
    golden.extract().expect_code(0);
    assert!(golden.compare_images() > 0);
    assert_eq!(golden.undecoded_devices(), Vec::<Value>::new());
    let mut info = golden.info();
    // They are not in order, but each of them is there once.
    assert!(info["passes"].as_u64().unwrap() > 1);
    info["passes"] = 1.into();
    check_facts(&info, paused("pc-i440fx-10.0"));
}

// Other targets.

#[test]
fn reads_aarch64() {
    check("aarch64-virt-10.0", Facts { vcpus: 2, ..paused("virt-10.0") });
}

#[test]
fn reads_an_interrupt_controller_with_structures_for_each_vcpu() {
    check("aarch64-10.0-gicv3", paused("virt-10.0"));
}

#[test]
fn reads_riscv64() {
    check("riscv64-virt-10.0", paused("virt"));
}

#[test]
fn reads_ppc64_with_its_hash_table_of_qemu_7_2() {
    check("ppc64-pseries-7.2", paused("pseries-7.2"));
}

#[test]
fn reads_ppc64_with_its_hash_table_of_qemu_11_1() {
    check("ppc64-pseries-11.1", paused("pseries-11.1"));
}

#[test]
fn reads_ppc64_with_entries_in_its_hash_table() {
    check("ppc64-10.0-htab", paused("pseries-10.0"));
}

#[test]
fn reads_s390x_with_storage_keys() {
    check("s390x-10.0-keys", paused("s390-ccw-virtio-10.0"));
}

#[test]
fn reads_s390x_with_its_storage_attributes_of_qemu_10_0() {
    check("s390x-10.0", paused("s390-ccw-virtio-10.0"));
}

#[test]
fn reads_s390x_with_its_storage_attributes_of_qemu_11_1() {
    check("s390x-11.1", paused("s390-ccw-virtio-11.1"));
}

// Other page sizes. None of them is in the configuration: the first comes from
// the description, after the pages.

#[test]
fn reads_pages_of_256_bytes() {
    check("avr-7.2", Facts { page_size: 256, ..paused("arduino-uno") });
}

#[test]
fn reads_pages_of_1_kib() {
    check("arm-mps2-7.2", Facts { page_size: 1024, ..paused("mps2-an385") });
}

#[test]
fn reads_pages_of_8_kib() {
    check("or1k-10.0", Facts { page_size: 8192, ..paused("or1k-sim") });
}

#[test]
fn reads_pages_of_16_kib() {
    check("tricore-10.0", Facts { page_size: 16384, ..paused("tricore_testboard") });
}

// What the configuration says.

#[test]
fn shows_the_uuid_that_a_stream_carries() {
    check("pc-7.2-validate-uuid", paused("pc-i440fx-7.2"));
    let info = Golden::unpack("pc-7.2-validate-uuid").info();
    assert_eq!(info["uuid"], "5c1f0a52-93d1-4f0e-8a3b-2f6d7e904b11");
}

/// The shared block is not in the stream. No image is better than one of
/// zeros, and the exit code says that something is missing.
#[test]
fn says_that_a_shared_block_is_not_in_the_stream() {
    let golden = Golden::unpack("pc-10.0-ignore-shared");
    let output = golden.extract().expect_code(3);
    assert!(
        output.stderr.contains("\"pc.ram\": 4096 of 4096 pages are not in the stream"),
        "{}",
        output.stderr
    );
    golden.compare_images();
    assert!(!golden.place.join("out/pc.ram").exists());
    assert_eq!(golden.undecoded_devices(), Vec::<Value>::new());
    let info = golden.info();
    assert_eq!(info["capabilities"], serde_json::json!(["x-ignore-shared"]));
    assert_eq!(info["warnings"].as_array().unwrap().len(), 1);
    check_facts(&info, paused("pc-i440fx-10.0"));
}

// Other encodings of pages.

#[test]
fn reads_xbzrle() {
    check("pc-7.2-xbzrle", live("pc-i440fx-7.2"));
    let info = Golden::unpack("pc-7.2-xbzrle").info();
    assert!(info["blocks"][0]["xbzrle_pages"].as_u64().unwrap() > 100, "{info}");
}

#[test]
fn reads_compressed_pages() {
    // Of a guest that ran, but threads that compress leave no order by which
    // passes could be counted.
    let golden = Golden::unpack("pc-7.2-compress");
    golden.extract().expect_code(0);
    golden.compare_images();
    let info = golden.info();
    assert!(info["blocks"][0]["resent_pages"].as_u64().unwrap() > 0, "{info}");
}

#[test]
fn reads_mapped_ram() {
    check("pc-11.1-mapped-ram", paused("pc-i440fx-11.1"));
    // Pages have one place each: nothing shows how often they were sent.
    check("pc-10.0-mapped-ram-live", paused("pc-i440fx-10.0"));
}

#[test]
fn refuses_mapped_ram_without_bitmaps() {
    // tests/mapped.rs salvages them.
    check_refused("pc-10.0-mapped-ram-snapshot", &["bitmap", "never written", "--salvage"]);
    check_refused("pc-11.1-mapped-ram-killed", &["the input ends here", "--salvage"]);
}

// Inside something else.

#[test]
fn reads_a_save_image_of_libvirt() {
    check("libvirt-12.8-gzip", paused("pc-i440fx-11.1"));
}

#[test]
fn reads_snapshots_of_a_qcow2_image() {
    let mut golden = Golden::unpack("pc-10.0-savevm-qcow2");
    for (tag, blocks) in golden.truth["snapshots"].clone().as_object().unwrap() {
        let args = ["extract", "stream", "-o", "out", "--force", "--snapshot", tag];
        assert_eq!(golden.place.ramlift(&args).expect_code(0).stderr, "");
        golden.truth["blocks"] = blocks.clone();
        assert!(golden.compare_images() > 0);
        assert_eq!(golden.undecoded_devices(), Vec::<Value>::new());
    }
}

#[test]
fn every_stream_here_is_tested() {
    let tests = [include_str!("golden.rs"), include_str!("multifd/main.rs")].concat();
    for name in manifest().as_object().unwrap().keys() {
        assert!(tests.contains(&format!("(\"{name}\"")), "{name}");
    }
}

#[test]
fn ram_is_the_same_without_the_description() {
    for name in
        ["pc-10.0-virtio", "q35-11.1-live", "s390x-11.1", "ppc64-pseries-7.2", "or1k-10.0", "arm-mps2-7.2"]
    {
        let whole = unpack(name);
        let stream = ramlift::Stream::parse(&whole).unwrap();
        let text = usize::try_from(stream.description().unwrap().offset.0).unwrap();
        // Type byte and length stand before the text.
        let bare = ramlift::Stream::parse(&whole[..text - 5]).unwrap();
        assert!(bare.description().is_none());
        let counts = |stream: &ramlift::Stream<'_>| -> Vec<_> {
            let ram = stream.ram().unwrap();
            let of = |(id, block, pages): (_, &ramlift::RamBlock, &ramlift::BlockPages)| {
                (block.idstr.clone(), pages.data_pages(), pages.fill_pages(), ram.absent_pages(id))
            };
            ram.blocks().map(of).collect()
        };
        assert_eq!(counts(&bare), counts(&stream), "{name}");
        let lens = |stream: &ramlift::Stream<'_>| -> Vec<_> {
            stream.sections().iter().map(ramlift::Section::body_len).collect()
        };
        assert_eq!(lens(&bare), lens(&stream), "{name}");
    }
}
