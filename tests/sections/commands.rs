//! Commands of the stream.

use crate::support::cli::Workplace;
use crate::support::synth::{Records, Synth};
use ramlift::Stream;

#[test]
fn commands_are_listed_by_their_names_with_their_data() {
    let all: [(u16, &str, &[u8]); 10] = [
        (1, "OPEN_RETURN_PATH", &[]),
        (2, "PING", &[0, 0, 0, 1]),
        (3, "POSTCOPY_ADVISE", &[0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x10, 0]),
        (4, "POSTCOPY_LISTEN", &[]),
        (5, "POSTCOPY_RUN", &[]),
        (6, "POSTCOPY_RAM_DISCARD", &[0, 1, b'a', 0]),
        (8, "ENABLE_COLO", &[]),
        (9, "POSTCOPY_RESUME", &[]),
        (10, "RECV_BITMAP", &[1, b'a']),
        (11, "SWITCHOVER_START", &[]),
    ];
    let stream = all.iter().fold(Synth::machine(), |stream, (number, _, data)| stream.command(*number, data));
    let stream = stream.finish();
    let stream = Stream::parse(&stream).unwrap();
    let met: Vec<_> = stream
        .commands()
        .iter()
        .map(|met| (met.command, met.name().unwrap(), stream.command_data(met)))
        .collect();
    assert_eq!(met, all);
    assert_eq!(stream.warnings(), []);
}

#[test]
fn a_command_of_no_known_number_is_warned_of() {
    let stream = Synth::machine().command(99, &[1, 2]).ram(&[], Records::new()).finish();
    let output = Workplace::with(&stream).ramlift(&["info", "stream", "--json"]).expect_code(0);
    assert!(output.json()["warnings"][0].as_str().unwrap().contains("99"), "{}", output.text());
}
