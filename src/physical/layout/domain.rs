//! What the domain XML of libvirt says of memory.

use crate::units::PhysicalAddress;

/// The longest XML that is looked at, in bytes: ten times what libvirt makes
/// of large guests.
const XML_LEN: usize = 4 << 20;

/// Attributes of one element, and namespaces of all. libvirt has up to ten of each.
/// The parser holds each attribute against all others of its element, and each
/// namespace against all around it.
const ATTRIBUTES: usize = 1024;
const NAMESPACES: usize = 256;

/// The DIMMs of a domain: the name of each one's RAM block, and where it is.
///
/// ```text
/// <devices> <memory model='dimm'> <address type='dimm' slot='0' base='0x100000000'/>
/// ```
///
/// The block of the nth memory device is `memdimmN`. What is no XML, or has a
/// document type, has none.
pub(super) fn dimms(xml: Option<&[u8]>) -> Vec<(String, PhysicalAddress)> {
    let xml = xml.filter(|xml| xml.len() <= XML_LEN && is_bounded(xml));
    let text = xml.and_then(|xml| std::str::from_utf8(xml).ok());
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

/// Whether there is no more of what the parser takes its time for: an attribute has
/// a `=`, and a namespace is one.
fn is_bounded(xml: &[u8]) -> bool {
    let has_few = |tag: &[u8]| memchr::memchr_iter(b'=', tag).nth(ATTRIBUTES).is_none();
    xml.split(|byte| *byte == b'<').all(has_few)
        && memchr::memmem::find_iter(xml, b"xmlns").nth(NAMESPACES).is_none()
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

    #[test]
    fn what_a_parser_takes_its_time_for_takes_none() {
        // Each took minutes.
        let many = |count: usize, make: fn(usize) -> String| (0..count).map(make).collect::<String>();
        let attributes = format!("<a {}/>", many(380_000, |nth| format!(" a{nth:x}=''")));
        let namespaces = format!("<a {}/>", many(230_000, |nth| format!(" xmlns:a{nth:x}='b'")));
        let inherited = many(100_000, |nth| format!("<a xmlns:a{nth:x}='b'>"));
        let copied = format!(
            "<a {}>{}</a>",
            many(1000, |nth| format!(" xmlns:a{nth:x}='{nth}'")),
            "<b xmlns:q='z'/>".repeat(200_000)
        );
        let most =
            format!("<a>{}</a>", format!("<b {}/>", many(1023, |nth| format!(" a{nth:x}=''"))).repeat(450));
        let all_around = format!(
            "<a {}>{}</a>",
            many(255, |nth| format!(" xmlns:a{nth:x}='{nth}'")),
            "<a1:b/>".repeat(500_000)
        );
        for xml in [attributes, namespaces, inherited, copied, most, all_around] {
            assert!(xml.len() <= XML_LEN, "{}", xml.len());
            let start = std::time::Instant::now();
            assert_eq!(dimms(Some(xml.as_bytes())), []);
            assert!(
                start.elapsed() < std::time::Duration::from_secs(10),
                "{}: {:?}",
                &xml[..20],
                start.elapsed()
            );
        }
    }
}
