//! What has to be gone back in, and is unpacked for that.

use std::fs;
use std::io::Read;

use super::{EXTRACT, Extracted, check_refused, extract};
use crate::support::cli::{Workplace, binary, entries_of, files_in, ramlift_fed};
use crate::support::fixtures::{unpack, unpack_channels};
use crate::{PACKED, SAVEVM, Tampered, fixture, gzip, small_stream, zstd};
use ramlift::StreamOffset;
use ramlift::wrapper::libvirt::SaveImage;

#[test]
fn what_is_whole_is_salvaged_from_a_cut_file() {
    let image = fixture("libvirt-12.8-zstd");
    let cut = &image[..image.len() - 9000];
    let place = Workplace::with(cut);
    let args = [&EXTRACT[..], &["--salvage"]].concat();
    let output = place.ramlift(&args).expect_code(3);
    assert!(output.stderr.contains("unpacked up to here: "), "{}", output.stderr);
    let met = Extracted::take(&place, output);
    // The same as of the stream's beginning.
    let mut rest = cut;
    let mut stream = Vec::new();
    let image = SaveImage::read(&mut rest).unwrap();
    image.open(rest, StreamOffset(0)).read_to_end(&mut stream).unwrap_err();
    let bare = Workplace::with(&stream);
    let output = bare.ramlift(&args).expect_code(3);
    met.check_same(&Extracted::take(&bare, output), &["libvirt save v2, zstd", "QEVM"]);
    assert!(met.files.contains_key("domain.xml"));
    assert_eq!(met.manifest["salvaged"], true);
    place.ramlift(&["state", "stream", "--salvage"]).expect_code(3);
    place.ramlift(&["info", "stream", "--salvage"]).expect_code(3);
}

#[test]
fn a_whole_file_is_salvaged_whole() {
    let bare = extract(&small_stream(), &["--salvage"]);
    for (name, kind) in PACKED {
        extract(&fixture(name), &["--salvage"]).check_same(&bare, &[&kind.to_string(), "QEVM"]);
    }
    for name in SAVEVM {
        let met = extract(&fixture(name), &["--salvage", "--snapshot", "first"]);
        met.check_same(&bare, &["qcow2 snapshot \"first\"", "QEVM"]);
    }
}

#[test]
fn what_is_whole_is_salvaged_from_a_damaged_image() {
    let image = Tampered::with("savevm-7.2");
    // The seventh cluster of the VM state is behind the file's end.
    let at = image.l2() + 6 * 8;
    let damaged = image.put(at, (1_u64 << 40).to_be_bytes()).0;
    check_refused(&damaged, &["--snapshot", "first"]);
    let place = Workplace::with(&damaged);
    let args = [&EXTRACT[..], &["--salvage", "--snapshot", "first"]].concat();
    let met = Extracted::take(&place, place.ramlift(&args).expect_code(3));
    let bare = Workplace::with(&small_stream()[..6 << 16]);
    let bare = Extracted::take(&bare, bare.ramlift(&[&EXTRACT[..], &["--salvage"]].concat()).expect_code(3));
    met.check_same(&bare, &["qcow2 snapshot \"first\"", "QEVM"]);
    assert!(met.output.stderr.contains("0x10000000000"), "{}", met.output.stderr);
}

#[test]
fn a_directory_for_temporary_files_that_is_not_there_is_named() {
    let place = Workplace::with(&fixture("packed.gz"));
    let mut command = std::process::Command::new(binary());
    command.args(["extract", "stream", "--salvage"]).current_dir(place.path());
    let output = command.env("TMPDIR", place.join("missing")).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && stderr.contains("missing"), "{stderr}");
    // Where it is there, nothing stays in it.
    fs::create_dir(place.join("missing")).unwrap();
    assert!(command.output().unwrap().status.success());
    assert_eq!(entries_of(place.join("missing")), [""; 0]);
}

#[test]
fn the_script_does_all_of_its_work_on_wrapped_streams() {
    let stream = small_stream();
    let bare = Workplace::with(&stream);
    let files = |place: &Workplace| {
        let out = place.ramlift(&["analyze-migration", "-f", "stream", "-x"]).expect_code(0).stdout;
        let names = files_in(place.path()).into_iter().filter(|name| name != "stream");
        (out, names.map(|name| place.read(&name)).collect::<Vec<_>>())
    };
    let memory =
        |place: &Workplace| place.ramlift(&["analyze-migration", "-f", "stream", "-m"]).expect_code(0).stdout;
    let expected = (files(&bare), memory(&bare));
    for wrapped in [fixture("packed.xz"), zstd(&gzip(&stream))] {
        let place = Workplace::with(&wrapped);
        assert!((files(&place), memory(&place)) == expected);
    }
}

#[test]
fn channels_are_joined_to_a_compressed_main_channel() {
    let name = "pc-7.2-multifd-live";
    let (stream, channels) = (unpack(name), unpack_channels(name));
    let [plain, packed] = [stream.clone(), zstd(&stream)].map(|main| {
        let place = Workplace::with(&main);
        let mut args = EXTRACT.map(str::to_owned).to_vec();
        for (nth, channel) in channels.iter().enumerate() {
            let path = place.join(&format!("channel-{nth}"));
            fs::write(&path, channel).unwrap();
            args.extend(["--channel".to_owned(), path.display().to_string()]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = place.ramlift(&args).expect_code(0);
        Extracted::take(&place, output)
    });
    packed.check_same(&plain, &["zstd", "QEVM"]);
}

#[test]
fn a_pipe_cannot_be_gone_back_in() {
    let place = Workplace::with(b"");
    for args in [&["extract", "-", "--salvage"][..], &["analyze-migration", "-f", "-", "-x"]] {
        let stderr = ramlift_fed(place.path(), args, &fixture("libvirt-12.8-zstd")).expect_code(1).stderr;
        assert!(stderr.contains("libvirt save v2, zstd → QEVM"), "{stderr}");
        assert!(stderr.contains("write it to a file first"), "{stderr}");
    }
    assert_eq!(entries_of(place.path()), ["stream"]);
}
