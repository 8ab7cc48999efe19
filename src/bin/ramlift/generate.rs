//! `ramlift generate`: what packagers need, made by clap's own crates.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::{Cli, Generate, GenerateArgs};
use crate::exit::{Exit, Failure};
use crate::terminal;

pub(crate) fn run(args: &GenerateArgs) -> Result<Exit, Failure> {
    let mut command = Cli::command();
    let shell = match args.what {
        Generate::Man => None,
        Generate::Bash => Some(Shell::Bash),
        Generate::Elvish => Some(Shell::Elvish),
        Generate::Fish => Some(Shell::Fish),
        Generate::PowerShell => Some(Shell::PowerShell),
        Generate::Zsh => Some(Shell::Zsh),
    };
    // Into memory first: the generators panic if their output fails.
    let mut text = Vec::new();
    match shell {
        Some(shell) => clap_complete::generate(shell, &mut command, "ramlift", &mut text),
        None => man_page(command, &mut text).map_err(Failure::stdout)?,
    }
    let mut out = terminal::stdout();
    std::io::Write::write_all(&mut out, &text).map_err(Failure::stdout)?;
    terminal::finish(out)?;
    Ok(Exit::Complete)
}

/// The man page: the command and its subcommands behind each other.
fn man_page(mut command: clap::Command, text: &mut Vec<u8>) -> std::io::Result<()> {
    command.build();
    clap_mangen::Man::new(command.clone()).render(text)?;
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        clap_mangen::Man::new(subcommand.clone()).render(text)?;
    }
    Ok(())
}
