//! `ramlift`: reads QEMU migration streams.

mod analyze_migration;
mod args;
mod block_devices;
mod channels;
mod compare;
mod cpu;
mod desc;
mod evidence;
mod exit;
mod extract;
mod generate;
mod guest;
mod hash;
mod images;
mod info;
mod layers;
mod layout;
mod manifest;
mod memory;
mod output;
mod paths;
mod physical;
mod progress;
mod raw;
mod snapshots;
mod source;
mod spool;
mod state;
mod terminal;
mod verify;

use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command};
use exit::Exit;

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
    output::clean_up_on_signals();
    let outcome = match &mut cli.command {
        Command::Info(args) => info::run(args),
        Command::Extract(args) => extract::run(args),
        Command::Verify(args) => verify::run(args),
        Command::State(args) => state::run(args),
        Command::Layout(args) => layout::run(args),
        Command::Cpu(args) => cpu::run(args),
        Command::Desc(args) => desc::run(args),
        Command::AnalyzeMigration(args) => analyze_migration::run(args),
        Command::Generate(args) => generate::run(args),
    };
    outcome.unwrap_or_else(|failure| failure.report()).into()
}
