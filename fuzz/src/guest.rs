//! What is made of a stream for debuggers: registers, the layout of memory, the
//! guest's kernel.

use ramlift::guest::{Depth, Linux, VmcoreInfo, Windows, kernel_ranges};
use ramlift::physical::{Layout, LayoutHints, PhysicalMemory};
use ramlift::{PhysicalAddress, Stream, cpu};

/// Looks at all of it.
pub fn look_at_guest(stream: &Stream<'_>) {
    let found = cpu::vcpus(stream);
    for vcpu in &found.vcpus {
        assert!(vcpu.registers().count() < 1 << 16);
    }
    let Some(ram) = stream.ram() else { return };
    let Ok(layout) = Layout::derive(stream, &LayoutHints::default()) else { return };
    check_layout(&layout);
    let memory = PhysicalMemory::new(ram, &layout);
    let mut page = [0; 5000];
    for region in layout.regions() {
        for at in [region.range.start.0, region.range.end.0 - 1] {
            drop(memory.read(PhysicalAddress(at), &mut page));
        }
    }
    if let Ok(Some(linux)) = Linux::find(stream, memory, Depth::Everything) {
        assert_eq!(VmcoreInfo::parse(linux.vmcoreinfo.text().as_bytes()).as_ref(), Some(&linux.vmcoreinfo));
        drop(kernel_ranges(&memory, &linux));
    }
    drop(Windows::find(stream, memory));
}

/// Checks that regions ascend and share no address.
fn check_layout(layout: &Layout) {
    let mut end = 0;
    for region in layout.regions() {
        assert!(region.range.start.0 >= end && region.range.start < region.range.end, "{region:?}");
        end = region.range.end.0;
    }
    let len: u64 = layout.regions().iter().map(|region| region.bytes()).sum();
    assert_eq!(len, layout.bytes());
}
