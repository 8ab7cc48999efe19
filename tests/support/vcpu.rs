//! A vCPU of x86-64, as far as it leads to a kernel.

use super::synth::Synth;

/// The registers that matter; others are 0.
#[derive(Clone, Copy, Default)]
pub struct Vcpu {
    pub lstar: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub gs_base: u64,
    pub kernel_gs_base: u64,
}

impl Vcpu {
    /// Puts its section into a stream, as the nth vCPU.
    pub fn put(self, synth: Synth, nth: u32) -> Synth {
        const LONG_MODE: u64 = 0x500;
        let segment = |base: u64| [0_u32.to_be_bytes().as_slice(), &base.to_be_bytes(), &[0; 8]].concat();
        let segments = [0, 0, 0, 0, 0, self.gs_base, 0, 0, 0, 0].map(segment).concat();
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
        let rest =
            [0, 0, self.cr3, self.cr4, 0, 0, 0, 0, 0, 0, 0, 0, LONG_MODE, self.lstar, self.kernel_gs_base];
        let body = [vec![0; 18 * 8 + 4], segments, words(&rest)].concat();
        let word = |name: &str| format!(r#"{{"name": "{name}", "type": "uint64", "size": 8}}"#);
        let array = |name: &str, count: u32| {
            format!(r#"{{"name": "{name}", "array_len": {count}, "type": "uint64", "size": 8}}"#)
        };
        let part = |name: &str, kind: &str, size: u32| {
            format!(r#"{{"name": "{name}", "type": "{kind}", "size": {size}}}"#)
        };
        let parts = [
            part("selector", "uint32", 4),
            part("base", "uint64", 8),
            part("limit", "uint32", 4),
            part("flags", "uint32", 4),
        ];
        let segment = format!(
            r#""type": "struct", "size": 20, "struct": {{"vmsd_name": "segment", "version": 1, "fields": [{}]}}}}"#,
            parts.join(", ")
        );
        let one = |name: &str| format!(r#"{{"name": "{name}", {segment}"#);
        let fields = [
            array("env.regs", 16),
            word("env.eip"),
            word("env.eflags"),
            part("env.hflags", "uint32", 4),
            format!(r#"{{"name": "env.segs", "array_len": 6, {segment}"#),
            one("env.ldt"),
            one("env.tr"),
            one("env.gdt"),
            one("env.idt"),
            word("env.cr[0]"),
            word("env.cr[2]"),
            word("env.cr[3]"),
            word("env.cr[4]"),
            array("env.dr", 8),
            word("env.efer"),
            word("env.lstar"),
            word("env.kernelgsbase"),
        ];
        let keys = format!(r#""vmsd_name": "cpu", "version": 1, "fields": [{}]"#, fields.join(", "));
        synth.device_as(40 + nth, "cpu", nth, &body, &keys)
    }
}
