//! A vCPU's section as QEMU describes it, and the registers that are to come out.

use arbitrary::{Result, Unstructured};
use ramlift::Architecture;

use super::super::fields::{Content, Field, Fields, cut};
use super::super::synth::noise;

/// What is made up.
pub struct Made {
    pub architecture: Architecture,
    pub fields: Fields,
    /// Registers by name, and their words.
    pub expected: Vec<(String, Vec<u64>)>,
    /// Parts of the text.
    pub shown: Vec<String>,
}

/// A target of QEMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    X86_64,
    I386,
    Aarch64,
    Arm,
    Ppc64,
    S390x,
    Riscv64,
    Loongarch64,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::X86_64,
        Self::I386,
        Self::Aarch64,
        Self::Arm,
        Self::Ppc64,
        Self::S390x,
        Self::Riscv64,
        Self::Loongarch64,
    ];

    fn architecture(self) -> Architecture {
        match self {
            Self::X86_64 => Architecture::X86_64,
            Self::I386 => Architecture::I386,
            Self::Aarch64 => Architecture::Aarch64,
            Self::Arm => Architecture::Arm,
            Self::Ppc64 => Architecture::Ppc64,
            Self::S390x => Architecture::S390x,
            Self::Riscv64 => Architecture::Riscv64,
            Self::Loongarch64 => Architecture::Loongarch64,
        }
    }
}

impl Made {
    pub fn of(u: &mut Unstructured<'_>, kind: Kind, is_hypervisor: bool) -> Result<Self> {
        let made = Self {
            architecture: kind.architecture(),
            fields: Fields::default(),
            expected: Vec::new(),
            shown: Vec::new(),
        };
        let mut maker = Maker { made, state: u.arbitrary()?, bits: u.arbitrary()? };
        match kind {
            Kind::X86_64 => maker.x86(u, 8)?,
            Kind::I386 => maker.x86(u, 4)?,
            Kind::Aarch64 => maker.arm(u, true)?,
            Kind::Arm => maker.arm(u, false)?,
            Kind::Ppc64 => maker.ppc64(is_hypervisor),
            Kind::S390x => maker.s390x(),
            Kind::Riscv64 => maker.riscv(u)?,
            Kind::Loongarch64 => maker.loongarch(),
        }
        Ok(maker.made)
    }
}

/// Puts fields and what they are to be side by side.
struct Maker {
    made: Made,
    state: u32,
    /// Which of the parts are there that not all have.
    bits: u32,
}

impl Maker {
    /// A number that is like no other.
    fn random(&mut self, size: u64) -> u64 {
        self.state = self.state.wrapping_add(1);
        let bytes = noise(u64::from(self.state) + 1, 8);
        // A footer in a body would end it as well as its own.
        let bytes = bytes.iter().map(|byte| if *byte == 0x7e { 0x7f } else { *byte });
        cut(bytes.fold(0, |word, byte| word << 8 | u64::from(byte)), size)
    }

    fn randoms(&mut self, size: u64, count: usize) -> Vec<u64> {
        (0..count).map(|_| self.random(size)).collect()
    }

    /// Whether the next part is there.
    fn has(&mut self) -> bool {
        self.bits = self.bits.rotate_right(1);
        self.bits >> 31 != 0
    }

    fn expect(&mut self, name: impl Into<String>, words: &[u64]) {
        self.made.expected.push((name.into(), words.to_vec()));
    }

    /// A field that is a register.
    fn word(&mut self, register: &str, field: &str, size: u64) -> u64 {
        let word = self.random(size);
        self.put(register, field, size, word)
    }

    /// A register of this value.
    fn put(&mut self, register: &str, field: &str, size: u64, word: u64) -> u64 {
        let word = cut(word, size);
        self.made.fields.push(Field::word(field, size, word));
        self.expect(register, &[word]);
        word
    }

    /// A field that is as many registers as there are names.
    fn array<N: Into<String>>(&mut self, names: impl IntoIterator<Item = N>, field: &str, size: u64) {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let words = self.randoms(size, names.len());
        self.made.fields.push(Field::array(field, size, &words));
        names.into_iter().zip(words).for_each(|(name, word)| self.expect(name, &[word]));
    }

    fn subsection(&mut self, name: &str, fields: Fields) {
        self.made.fields.subsections.push((name.to_owned(), fields));
    }

    fn shown(&mut self, text: String) {
        self.made.shown.push(text);
    }

    fn x86(&mut self, u: &mut Unstructured<'_>, size: u64) -> Result<()> {
        let mut names = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"].map(str::to_owned).to_vec();
        let count = if size == 4 { 8 } else { *u.choose(&[16, 16, 32])? };
        names.extend((8..count).map(|nth| format!("r{nth}")));
        self.array(names, "env.regs", size);
        let rip = self.word("rip", "env.eip", size);
        self.word("eflags", "env.eflags", size);
        // Modes are what matters of it.
        let hflags = u64::from(u.arbitrary::<u32>()?);
        self.put("hflags", "env.hflags", 4, hflags);
        self.shown(match hflags >> 15 & 1 {
            0 => format!("EIP={:08x}", cut(rip, 4)),
            _ => format!("RIP={rip:016x}"),
        });
        for (register, field) in
            [("fcw", "env.fpuc"), ("fsw", "env.fpus_vmstate"), ("ftw", "env.fptag_vmstate")]
        {
            self.word(register, field, 2);
        }
        self.x87();
        let segments = ["es", "cs", "ss", "ds", "fs", "gs"].map(|name| self.segment(u, name, size));
        let segments = segments.into_iter().collect::<Result<_>>()?;
        self.made.fields.push(Field::structs("env.segs", segments));
        for name in ["ldt", "tr", "gdt", "idt"] {
            let segment = self.segment(u, name, size)?;
            self.made.fields.push(Field::structs(&format!("env.{name}"), vec![segment]));
        }
        for nth in [0, 2, 3, 4] {
            self.word(&format!("cr{nth}"), &format!("env.cr[{nth}]"), size);
        }
        self.array((0..8).map(|nth| format!("dr{nth}")), "env.dr", size);
        self.word("mxcsr", "env.mxcsr", 4);
        for register in ["efer", "star", "lstar", "cstar", "fmask", "kernelgsbase", "pat", "tsc"] {
            if self.has() {
                self.word(register, &format!("env.{register}"), 8);
            }
        }
        let xcr0 = u64::from(u.arbitrary::<u8>()?);
        self.put("xcr0", "env.xcr0", 8, xcr0);
        self.vectors();
        Ok(())
    }

    fn x87(&mut self) {
        let is_old = self.has();
        let mut registers = Vec::new();
        for nth in 0..8 {
            let (mantissa, exponent) = (self.random(8), self.random(2));
            let parts = vec![Field::word("tmp_mant", 8, mantissa), Field::word("tmp_exp", 2, exponent)];
            registers.push(if is_old { parts } else { vec![Field::structs("tmp", vec![parts])] });
            self.expect(format!("fpr{nth}"), &[mantissa, exponent]);
        }
        self.made.fields.push(Field::structs("env.fpregs", registers));
    }

    fn segment(&mut self, u: &mut Unstructured<'_>, name: &str, size: u64) -> Result<Vec<Field>> {
        let (selector, limit) = (self.random(4), self.random(4));
        // What kind it is, of all that there are.
        let (base, flags) = (self.random(size), u64::from(u.arbitrary::<u16>()?) << 8);
        self.expect(name, &[selector]);
        for (part, word) in [("base", base), ("limit", limit), ("flags", flags)] {
            self.expect(format!("{name}.{part}"), &[word]);
        }
        Ok(vec![
            Field::word("selector", 4, selector),
            Field::word("base", size, base),
            Field::word("limit", 4, limit),
            Field::word("flags", 4, flags),
        ])
    }

    /// SSE, AVX and AVX-512: of each list, some more words of each.
    fn vectors(&mut self) {
        let (has_avx, has_avx512) = (self.has(), self.has());
        let mut vectors = vec![Vec::new(); 32];
        let list = |maker: &mut Self, vectors: &mut [Vec<u64>], first: usize, count: usize| {
            let register = |vector: &mut Vec<u64>| {
                let words = maker.randoms(8, count);
                vector.extend(&words);
                let lane = |(nth, word)| Field::word(&format!("ZMM_Q({})", first + nth), 8, word);
                words.into_iter().enumerate().map(lane).collect()
            };
            Field::structs("env.xmm_regs", vectors.iter_mut().map(register).collect())
        };
        let sse = list(self, &mut vectors[..16], 0, 2);
        self.made.fields.push(sse);
        if has_avx {
            let avx = list(self, &mut vectors[..16], 2, 2);
            self.made.fields.push(avx);
        }
        if has_avx && has_avx512 {
            let masks = self.randoms(8, 8);
            let mut wide = Fields::of(vec![Field::array("env.opmask_regs", 8, &masks)]);
            wide.push(list(self, &mut vectors[..16], 4, 4));
            wide.push(list(self, &mut vectors[16..], 0, 8));
            self.subsection("cpu/avx512", wide);
            (0..).zip(masks).for_each(|(nth, mask)| self.expect(format!("opmask{nth}"), &[mask]));
        }
        for (nth, words) in vectors.iter().enumerate().filter(|(_, words)| !words.is_empty()) {
            self.expect(format!("xmm{nth}"), words);
        }
    }

    fn arm(&mut self, u: &mut Unstructured<'_>, is_64: bool) -> Result<()> {
        let status = u64::from(u.arbitrary::<u32>()?);
        let is_32_now = status >> 4 & 1 != 0;
        let live = self.randoms(4, 16);
        self.made.fields.push(Field::array("env.regs", 4, &live));
        let general = self.randoms(8, 32);
        self.made.fields.push(Field::array("env.xregs", 8, &general));
        let pc = self.random(8);
        self.made.fields.push(Field::word("env.pc", 8, pc));
        let name = if self.has() { "cpsr" } else { "pstate64" };
        let size = if name == "cpsr" { 4 } else { 8 };
        self.made.fields.push(Field::word(name, size, status));
        for (name, count) in [("usr_regs", 5), ("fiq_regs", 5), ("banked_r13", 8), ("banked_r14", 8)] {
            let words = self.randoms(4, count);
            self.made.fields.push(Field::array(&format!("env.{name}"), 4, &words));
        }
        match (is_64, is_32_now) {
            (true, false) => {
                general[..31]
                    .iter()
                    .enumerate()
                    .for_each(|(nth, word)| self.expect(format!("x{nth}"), &[*word]));
                self.expect("sp", &[general[31]]);
                self.expect("pc", &[pc]);
                self.shown(format!(" PC={pc:016x} X00={:016x}", general[0]));
            }
            // The first eight have no banks.
            (true, true) => (0..8).for_each(|nth| self.expect(format!("x{nth}"), &[live[nth]])),
            (false, _) => self.expect("cpsr", &[status]),
        }
        if is_32_now || !is_64 {
            live.iter().enumerate().for_each(|(nth, word)| self.expect(format!("r{nth}"), &[*word]));
            self.shown(format!("R15={:08x}", live[15]));
        }
        if is_64 {
            self.expect("pstate", &[status]);
        }
        self.array((0..4).map(|nth| format!("elr_el{nth}")), "env.elr_el", 8);
        self.array((0..4).map(|nth| format!("sp_el{nth}")), "env.sp_el", 8);
        self.system(u, is_64)?;
        self.floating();
        Ok(())
    }

    fn system(&mut self, u: &mut Unstructured<'_>, is_64: bool) -> Result<()> {
        const KVM: u64 = 0x6030_0000_0013_0000;
        let known = [
            ("sctlr_el1", 0xc080),
            ("cpacr_el1", 0xc082),
            ("ttbr0_el1", 0xc100),
            ("ttbr1_el1", 0xc101),
            ("tcr_el1", 0xc102),
            ("cptr_el2", 0xe08a),
            ("scr_el3", 0xf088),
            ("cptr_el3", 0xf08a),
        ];
        let mut names = vec![0x4020_0000_000f_1000];
        let mut values = vec![1];
        for (name, number) in known {
            if self.has() {
                let value = u64::from(u.arbitrary::<u32>()?);
                names.push(KVM | number);
                values.push(value);
                self.expect(name, &[value]);
            }
        }
        if is_64 {
            names.push(KVM | *u.choose(&[0xc028, 0xc030, 0xda20])?);
            values.push(self.random(8));
        }
        self.made.fields.push(Field::array("cpreg_vmstate_indexes", 8, &names));
        self.made.fields.push(Field::array("cpreg_vmstate_values", 8, &values));
        Ok(())
    }

    fn floating(&mut self) {
        if !self.has() {
            return;
        }
        let mut vfp = Fields::default();
        // More with SVE.
        let count = if self.has() { 2 } else { 4 };
        for nth in 0..32 {
            let words = self.randoms(8, count);
            vfp.push(Field::array(&format!("env.vfp.zregs[{nth}].d"), 8, &words));
            self.expect(format!("v{nth}"), &words);
        }
        let both = self.random(4);
        vfp.push(Field::word("fpscr", 4, both));
        self.expect("fpscr", &[both & 0xffff_9f9f]);
        if self.has() {
            let parts = self.randoms(8, 2);
            let fields = vec![Field::word("fpcr", 8, parts[0]), Field::word("fpsr", 8, parts[1])];
            vfp.subsections.push(("cpu/vfp/fpcr_fpsr".to_owned(), Fields::of(fields)));
            self.expect("fpcr", &parts[..1]);
            self.expect("fpsr", &parts[1..]);
        }
        self.subsection("cpu/vfp", vfp);
    }

    fn ppc64(&mut self, is_hypervisor: bool) {
        let mut special = self.randoms(8, 1024);
        if self.has() {
            special[287] = 0x004d_0200;
        }
        self.array((0..32).map(|nth| format!("r{nth}")), "env.gpr", 8);
        let condition: Vec<u64> = self.randoms(4, 8).iter().map(|word| word & 15).collect();
        self.made.fields.push(Field::array("env.crf", 4, &condition));
        self.expect("cr", &[condition.iter().fold(0, |all, field| all << 4 | field)]);
        let nip = self.word("nip", "env.nip", 8);
        self.shown(format!("NIP {nip:016x}"));
        self.word("msr", "env.msr", 8);
        if self.has() {
            let address = self.word("reserve_addr", "env.reserve_addr", 8);
            self.shown(format!("RES {address:016x}"));
        }
        for (name, nth) in [("lr", 8), ("ctr", 9), ("xer", 1), ("pvr", 287), ("lpcr", 318), ("dsisr", 18)] {
            self.expect(name, &[special[nth]]);
        }
        self.made.fields.push(Field::array("env.spr", 8, &special));
        if is_hypervisor {
            self.expect("hv", &[1]);
        }
        let (has_fpu, has_vsx, has_altivec) = (self.has(), self.has(), self.has());
        let (high, low) = (self.randoms(8, 32), self.randoms(8, 32));
        if has_fpu {
            let control = self.random(8);
            let fields = vec![Field::array("env.vsr", 8, &high), Field::word("env.fpscr", 8, control)];
            self.subsection("cpu/fpu", Fields::of(fields));
            self.expect("fpscr", &[control]);
            for nth in 0..32 {
                self.expect(format!("vsr{nth}"), &[if has_vsx { low[nth] } else { 0 }, high[nth]]);
            }
        }
        if has_altivec {
            let words = self.randoms(8, 64);
            let content = Content::Numbers { kind: "avr", size: 16, is_array: true, words: words.clone() };
            let control = self.random(4);
            let vectors = Field { name: "env.vsr".to_owned(), content };
            self.subsection("cpu/altivec", Fields::of(vec![vectors, Field::word("vscr", 4, control)]));
            words.chunks(2).enumerate().for_each(|(nth, words)| self.expect(format!("vr{nth}"), words));
            self.expect("vscr", &[control]);
        }
        if has_vsx {
            self.subsection("cpu/vsx", Fields::of(vec![Field::array("env.vsr", 8, &low)]));
        }
    }

    fn s390x(&mut self) {
        let numbered = |prefix: &'static str| (0..16).map(move |nth| format!("{prefix}{nth}"));
        self.array(numbered("r"), "env.regs", 8);
        let mask = self.word("psw.mask", "env.psw.mask", 8);
        let address = self.word("psw.addr", "env.psw.addr", 8);
        self.shown(format!("PSW=mask {mask:016x} addr {address:016x}"));
        self.word("prefix", "env.psa", 8);
        self.word("todpr", "env.todpr", 4);
        self.array(numbered("a"), "env.aregs", 4);
        self.array(numbered("c"), "env.cregs", 8);
        let has_vectors = self.has();
        let halves = self.randoms(8, 64);
        let half = |nth: usize, half: usize| {
            Field::word(&format!("env.vregs[{nth}][{half}]"), 8, halves[2 * nth + half])
        };
        let mut fpu: Vec<Field> = (0..16).map(|nth| half(nth, 0)).collect();
        let control = self.random(4);
        fpu.push(Field::word("env.fpc", 4, control));
        self.expect("fpc", &[control]);
        self.subsection("cpu/fpu", Fields::of(fpu));
        if has_vectors {
            let low = (0..16).map(|nth| half(nth, 1));
            let rest = (16..32).flat_map(|nth| [half(nth, 0), half(nth, 1)]);
            self.subsection("cpu/vregs", Fields::of(low.chain(rest).collect()));
            (0..32).for_each(|nth| self.expect(format!("v{nth}"), &[halves[2 * nth + 1], halves[2 * nth]]));
        } else {
            (0..16).for_each(|nth| self.expect(format!("f{nth}"), &[halves[2 * nth]]));
        }
        if self.has() {
            let guarded = self.randoms(8, 4);
            self.subsection("cpu/gscb", Fields::of(vec![Field::array("env.gscb", 8, &guarded)]));
            (0..).zip(guarded).for_each(|(nth, word)| self.expect(format!("gs{nth}"), &[word]));
        }
    }

    fn riscv(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let general = [
            "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4", "a5",
            "a6", "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
        ];
        self.array(general, "env.gpr", 8);
        let floating = self.randoms(8, 32);
        self.made.fields.push(Field::array("env.fpr", 8, &floating));
        self.expect("ft0", &floating[..1]);
        self.expect("ft11", &floating[31..]);
        let pc = self.word("pc", "env.pc", 8);
        self.shown(format!("{pc:016x}"));
        let extensions = u64::from(u.arbitrary::<u32>()?);
        self.put("misa", "env.misa_ext", 4, extensions);
        for register in ["mhartid", "mstatus", "mip", "mie", "mideleg", "stvec", "sepc", "satp", "priv"] {
            self.word(register, &format!("env.{register}"), 8);
        }
        if self.has() {
            let mut hypervisor = Fields::default();
            for register in ["hstatus", "hideleg", "vsstatus", "hgatp"] {
                let word = self.random(8);
                hypervisor.push(Field::word(&format!("env.{register}"), 8, word));
                self.expect(register, &[word]);
            }
            self.subsection("cpu/hyper", hypervisor);
        }
        if self.has() {
            let words = self.randoms(8, 64);
            let mut vector = Fields::of(vec![Field::array("env.vreg", 8, &words)]);
            vector.push(Field::word("env.vl", 8, 5));
            self.expect("vreg", &words);
            self.expect("vl", &[5]);
            self.subsection("cpu/vector", vector);
        }
        Ok(())
    }

    fn loongarch(&mut self) {
        let numbered = |prefix: &'static str| (0..32).map(move |nth| format!("{prefix}{nth}"));
        self.array(numbered("r"), "env.gpr", 8);
        let pc = self.word("pc", "env.pc", 8);
        self.shown(format!(" PC={pc:016x}"));
        for register in ["crmd", "prmd", "era", "badv", "prcfg1"] {
            self.word(register, &format!("env.CSR_{}", register.to_uppercase()), 8);
        }
        if !self.has() {
            return;
        }
        let (words, flags) = (self.randoms(8, 32), self.randoms(1, 8));
        let registers = match self.has() {
            true => Field::array("env.fpr", 8, &words),
            false => {
                let register = |word: &u64| vec![Field::word("UD", 8, *word), Field::word("UD1", 8, 9)];
                Field::structs("env.fpr", words.iter().map(register).collect())
            }
        };
        let mut fpu = Fields::of(vec![registers, Field::word("env.fcsr0", 4, 3)]);
        fpu.push(Field::array("env.cf", 1, &flags));
        self.subsection("cpu/fpu", fpu);
        numbered("f").zip(&words).for_each(|(name, word)| self.expect(name, &[*word]));
        self.expect("fcc", &[flags.iter().rev().fold(0, |all, flag| all << 8 | flag)]);
    }
}
