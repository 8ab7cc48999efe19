//! `ramlift`: reads QEMU migration streams.

// No panic on input, and no number cut short.
#![warn(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

mod again;
mod analyze_migration;
mod args;
mod block_devices;
mod channels;
mod compare;
mod cpu;
mod desc;
mod durable;
mod evidence;
mod exit;
mod extract;
mod generate;
mod guest;
mod hash;
mod images;
mod info;
mod inputs;
mod layers;
mod layout;
mod manifest;
mod memory;
mod os_text;
mod output;
mod paths;
mod physical;
mod progress;
mod raw;
mod recorded;
mod room;
mod signals;
mod single_file;
mod snapshots;
mod source;
mod spool;
mod staging;
mod state;
mod temporary;
mod terminal;
mod verify;

use std::num::NonZeroUsize;

use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command};
use exit::{Exit, Failure};

fn main() -> std::process::ExitCode {
    let mut cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let is_answer = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // Nothing can be done if even this cannot be printed.
            let _ = error.print();
            return if is_answer { Exit::Complete } else { Exit::Usage }.into();
        }
    };
    staging::let_owner_in();
    signals::watch();
    let threads = match &cli.command {
        Command::Extract(args) => args.threads,
        Command::Verify(args) => args.threads,
        _ => None,
    };
    // Not in rayon's own pool, which panics where no thread is to be had.
    let outcome = pool(threads).and_then(|pool| pool.install(|| run(&mut cli.command)));
    conclude(outcome).into()
}

/// The threads of a command. The environment can ask for no more than `--threads`
/// can: a million of them take ten minutes to be begun.
fn pool(threads: Option<u16>) -> Result<rayon::ThreadPool, Failure> {
    let of_environment = || {
        let count: usize = std::env::var("RAYON_NUM_THREADS").ok()?.parse().ok()?;
        (count > 0).then(|| count.min(usize::from(args::THREADS_MAX)))
    };
    let of_machine = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let count = threads.map(usize::from).or_else(of_environment).unwrap_or_else(of_machine);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build();
    pool.map_err(|error| Failure::Other(format!("threads: {error}")))
}

fn run(command: &mut Command) -> Result<Exit, Failure> {
    match command {
        Command::Info(args) => info::run(args),
        Command::Extract(args) => extract::run(args),
        Command::Verify(args) => verify::run(args),
        Command::State(args) => state::run(args),
        Command::Layout(args) => layout::run(args),
        Command::Cpu(args) => cpu::run(args),
        Command::Desc(args) => desc::run(args),
        Command::AnalyzeMigration(args) => analyze_migration::run(args),
        Command::Generate(args) => generate::run(args),
    }
}

/// What came of it, if the input is still what it was. A change of it explains
/// whatever failed.
fn conclude(outcome: Result<Exit, Failure>) -> Exit {
    // If a signal is just about to end the process, it is let do so.
    let _staged = staging::staged();
    match inputs::check() {
        Ok(()) => outcome.unwrap_or_else(|failure| failure.report()),
        Err(changed) => changed.report(),
    }
}
