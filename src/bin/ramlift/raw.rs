//! `ramlift state --raw`: the bytes of a section's bodies, for what is opaque.

use std::collections::BTreeSet;
use std::io::Write;

use ramlift::{Section, Stream};

use crate::exit::{Exit, Failure};
use crate::terminal;

/// Which bodies are asked for.
pub(crate) struct RawChoice<'c> {
    /// The section's name, plain or as it is shown.
    pub(crate) idstr: &'c str,
    /// Its instance id, if there are several.
    pub(crate) instance: Option<u32>,
    /// Where the section or its body begins, if it is one alone.
    pub(crate) at: Option<u64>,
}

impl RawChoice<'_> {
    fn is_named(&self, section: &Section) -> bool {
        let shown = section.handler.idstr.to_string();
        section.handler.idstr == self.idstr || shown == self.idstr
    }

    fn is_chosen(&self, section: &Section) -> bool {
        self.is_named(section)
            && self.instance.is_none_or(|instance| section.handler.instance_id == instance)
            && self.at.is_none_or(|at| [section.offset.0, section.body.0].contains(&at))
    }
}

/// Prints the bodies that are asked for, in the order of the stream.
pub(crate) fn print(stream: &Stream<'_>, choice: &RawChoice<'_>) -> Result<Exit, Failure> {
    let sections: Vec<&Section> =
        stream.sections().iter().filter(|section| choice.is_chosen(section)).collect();
    let instances: BTreeSet<u32> = sections.iter().map(|section| section.handler.instance_id).collect();
    if instances.len() != 1 {
        return Err(Failure::Other(fault(stream, choice, &instances)));
    }
    if let Some(gone) = sections.iter().find(|section| section.body_len() > stream.body(section).len() as u64)
    {
        let name = &gone.handler;
        let text =
            format!("the bytes of {name} have gone by; write the stream to a file first, and give that");
        return Err(Failure::Other(text));
    }
    let mut out = terminal::stdout();
    sections.iter().try_for_each(|section| out.write_all(stream.body(section))).map_err(Failure::stdout)?;
    terminal::finish(out)?;
    Ok(Exit::Complete)
}

/// Why it is not one handler that is asked for.
fn fault(stream: &Stream<'_>, choice: &RawChoice<'_>, instances: &BTreeSet<u32>) -> String {
    let name = choice.idstr;
    if !instances.is_empty() {
        let known: Vec<String> = instances.iter().take(20).map(u32::to_string).collect();
        return format!("several sections are called \"{name}\"; --instance is one of {}", known.join(", "));
    }
    if stream.sections().iter().any(|section| choice.is_named(section)) {
        return format!(
            "no section \"{name}\" has that instance id and offset; `ramlift info --json` lists them"
        );
    }
    format!("no section is called \"{name}\"; `ramlift info` lists them")
}
