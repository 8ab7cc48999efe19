//! What the domain XML of libvirt says of memory.

use crate::units::PhysicalAddress;

/// The longest XML that is looked at, in bytes: ten times what libvirt makes
/// of large guests.
const XML_LEN: usize = 4 << 20;

/// The DIMMs of a domain: the name of each one's RAM block, and where it is.
///
/// ```text
/// <devices> <memory model='dimm'> <address type='dimm' slot='0' base='0x100000000'/>
/// ```
///
/// The block of the nth memory device is `memdimmN`. What is no XML, or has a
/// document type, has none.
pub(super) fn dimms(xml: Option<&[u8]>) -> Vec<(String, PhysicalAddress)> {
    let text = xml.filter(|xml| xml.len() <= XML_LEN).and_then(|xml| std::str::from_utf8(xml).ok());
    let Some(document) = text.and_then(|text| roxmltree::Document::parse(text).ok()) else {
        return Vec::new();
    };
    let memory =
        document.descendants().filter(|node| node.has_tag_name("memory") && node.has_attribute("model"));
    let place = |(nth, node): (usize, roxmltree::Node<'_, '_>)| {
        let address = node.children().find(|child| child.has_tag_name("address"))?;
        let base = address.attribute("base")?.strip_prefix("0x")?;
        Some((format!("memdimm{nth}"), PhysicalAddress(u64::from_str_radix(base, 16).ok()?)))
    };
    memory.enumerate().filter_map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimms_have_a_base() {
        let xml = b"<domain><devices><memory model='dimm'><target/><address type='dimm' slot='0' base='0x140000000'/>\
            </memory><memory model='virtio-mem'/></devices></domain>";
        assert_eq!(dimms(Some(xml)), [("memdimm0".to_owned(), PhysicalAddress(0x1_4000_0000))]);
    }

    #[test]
    fn what_is_no_xml_has_none() {
        for xml in [&b"<a"[..], b"\xff", b"", b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"] {
            assert_eq!(dimms(Some(xml)), []);
        }
        assert_eq!(dimms(None), []);
    }
}
