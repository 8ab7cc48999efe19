//! The description ("vmdesc"): JSON that QEMU writes behind the records.
//!
//! ```text
//! {"page_size": 4096,
//!  "devices": [{"name": "timer", "instance_id": 0, "vmsd_name": "timer", "version": 2,
//!               "fields": [{"name": "cpu_ticks_offset", "type": "int64", "size": 8}, …],
//!               "subsections": […]}, …]}
//! ```
//!
//! Two things keep it from being plain JSON: a field that is a list repeats
//! the keys `vmsd_name`, `version`, `fields` in one object, once for each
//! element; and equal names in one list of fields mean an array, or parts of
//! one. Both are kept here in the order of the text. Unknown keys are let
//! pass: they do not change where bytes are.
//!
//! Source followed: QEMU `migration/vmstate.c` (`vmsd_desc_field_start`).

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::idstr::Idstr;
use crate::vmstate::field::FieldType;
use crate::wire::limit;

/// The whole description.
#[derive(Clone, Debug)]
pub struct VmDesc {
    /// The target page size in bytes, as QEMU gives it.
    pub page_size: Option<u64>,
    /// One for each FULL section, in the order of the stream.
    pub devices: Vec<DeviceDesc>,
}

/// What the body of one FULL section holds.
#[derive(Clone, Debug)]
pub struct DeviceDesc {
    /// The section's idstr.
    pub name: String,
    /// The section's instance id.
    pub instance_id: u32,
    /// Its fields and subsections. A device of the old style has the one
    /// field `data` and no `vmsd_name`.
    pub vmsd: Vmsd,
    /// Why its description cannot be used; its fields are empty then.
    pub fault: Option<String>,
}

/// A described structure: QEMU's `VMStateDescription` as it was saved.
#[derive(Clone, Debug, Default)]
pub struct Vmsd {
    /// Its name; empty if it has none.
    pub vmsd_name: String,
    /// Its version.
    pub version: i64,
    /// Its fields, in the order of the stream.
    pub fields: Vec<FieldDesc>,
    /// The subsections that were written, in the order of the stream.
    pub subsections: Vec<Vmsd>,
    /// Whether there is a list of fields, if only an empty one. An object
    /// without stands for a NULL pointer (QEMU up to 9.1).
    pub has_fields: bool,
}

/// One field, or an array of fields of one layout.
#[derive(Clone, Debug)]
pub struct FieldDesc {
    /// The C expression of the field, perhaps with a suffix `[k]`.
    pub name: String,
    /// How many elements; `None` for a single field.
    pub array_len: Option<u64>,
    /// Which element of an array whose elements are described one by one.
    pub index: Option<u64>,
    /// The type.
    pub kind: FieldType,
    /// The type as the description spells it.
    pub type_name: String,
    /// Bytes of one element, nested subsections included.
    pub size: u64,
    /// Nested descriptions: one of a structure; one for each element of a
    /// list; none of a plain field.
    pub nested: Vec<Vmsd>,
}

impl VmDesc {
    /// Reads the text of a description.
    ///
    /// # Errors
    /// If the text is not JSON, or not an object with a list of devices.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }

    /// Whether the first device is this one.
    pub(crate) fn begins_with(&self, idstr: &[u8], instance_id: u32) -> bool {
        let first = self.devices.first();
        first.is_some_and(|first| first.name.as_bytes() == idstr && first.instance_id == instance_id)
    }

    /// The description of the section that follows `after` others, named
    /// `name` and `instance_id`. QEMU describes FULL sections in order; where
    /// some are missing on either side, the name decides among neighbours.
    pub fn device(&self, after: usize, name: &[u8], instance_id: u32) -> Option<&DeviceDesc> {
        const NEIGHBOURS: usize = 32;
        let is_it =
            |device: &&DeviceDesc| device.name.as_bytes() == name && device.instance_id == instance_id;
        let near = after.saturating_sub(NEIGHBOURS)..(after + NEIGHBOURS).min(self.devices.len());
        self.devices.get(after).filter(is_it).or_else(|| self.devices.get(near)?.iter().find(is_it))
    }
}

impl DeviceDesc {
    /// The length of the body as the sizes add up; `None` past 2⁶⁴.
    pub(crate) fn described_len(&self) -> Option<u64> {
        if self.fault.is_some() {
            return None;
        }
        self.vmsd.described_len()
    }

    /// Reads one element of the list of devices. One that is faulty takes its
    /// place all the same, by its name if it has one: the others do not depend
    /// on it.
    fn parse(text: &RawValue) -> Self {
        serde_json::from_str(text.get()).unwrap_or_else(|why: serde_json::Error| {
            let named: NamedDevice = serde_json::from_str(text.get()).unwrap_or_default();
            let instance_id = named.instance_id.map_or(0, |id| id.0);
            let fault = Some(Idstr::from(why.to_string().as_str()).to_string());
            Self { name: named.name.unwrap_or_default(), instance_id, vmsd: Vmsd::default(), fault }
        })
    }
}

/// What can be known of a device whose description is faulty.
#[derive(Default, Deserialize)]
#[serde(default)]
struct NamedDevice {
    name: Option<String>,
    instance_id: Option<InstanceId>,
}

impl Vmsd {
    fn described_len(&self) -> Option<u64> {
        let fields = self.fields.iter().try_fold(0u64, |sum, field| {
            sum.checked_add(field.size.checked_mul(field.array_len.unwrap_or(1))?)
        })?;
        self.subsections.iter().try_fold(fields, |sum, subsection| {
            // Type byte, counted name, version.
            let head = 1 + 1 + subsection.vmsd_name.len() as u64 + 4;
            sum.checked_add(head)?.checked_add(subsection.described_len()?)
        })
    }
}

/// A visitor of JSON objects that fills `$target` key by key.
macro_rules! deserialize_object {
    ($type:ty, $what:literal, $start:expr, |$this:ident, $key:ident, $map:ident| $body:block, $finish:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct ObjectVisitor;
                impl<'de> Visitor<'de> for ObjectVisitor {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }
                    fn visit_map<A: MapAccess<'de>>(self, mut $map: A) -> Result<$type, A::Error> {
                        let mut $this = $start;
                        while let Some(key) = $map.next_key::<std::borrow::Cow<'de, str>>()? {
                            let $key = key.as_ref();
                            $body
                        }
                        $finish($this).map_err(serde::de::Error::missing_field)
                    }
                }
                deserializer.deserialize_map(ObjectVisitor)
            }
        }
    };
}

deserialize_object!(
    VmDesc,
    "an object with \"devices\"",
    (None, None),
    |this, key, map| {
        match key {
            "page_size" => this.0 = Some(map.next_value()?),
            "devices" => {
                let texts: Vec<&'de RawValue> = map.next_value()?;
                if texts.len() > limit::DEVICES {
                    let why = format!("{} devices, expected at most {}", texts.len(), limit::DEVICES);
                    return Err(serde::de::Error::custom(why));
                }
                this.1 = Some(texts.into_iter().map(DeviceDesc::parse).collect());
            }
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
    },
    |(page_size, devices): (Option<u64>, Option<Vec<DeviceDesc>>)| {
        Ok(VmDesc { page_size, devices: devices.ok_or("devices")? })
    }
);

deserialize_object!(
    DeviceDesc,
    "a device: an object with \"name\", \"instance_id\" and \"fields\"",
    (None, None, Vmsd::default()),
    |this, key, map| {
        match key {
            "name" => this.0 = Some(map.next_value()?),
            "instance_id" => this.1 = Some(map.next_value::<InstanceId>()?.0),
            _ => this.2.take_key(key, &mut map)?,
        }
    },
    |(name, instance_id, vmsd): (Option<String>, Option<u32>, Vmsd)| {
        if !vmsd.has_fields {
            return Err("fields");
        }
        let (name, instance_id) = (name.ok_or("name")?, instance_id.ok_or("instance_id")?);
        Ok(DeviceDesc { name, instance_id, vmsd, fault: None })
    }
);

deserialize_object!(
    Vmsd,
    "a description: an object with \"vmsd_name\", \"version\" and \"fields\"",
    Vmsd::default(),
    |this, key, map| { this.take_key(key, &mut map)? },
    Ok
);

/// An instance id as QEMU prints it: before 5.0 it was an `int`, so ids from
/// 2³¹ up (hashes, spapr_iommu's 0x80000000) stand there as negative numbers.
struct InstanceId(u32);

impl<'de> Deserialize<'de> for InstanceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        let id = u32::try_from(number).or_else(|_| i32::try_from(number).map(i32::cast_unsigned));
        id.map(Self).map_err(|_| serde::de::Error::custom("an instance id of more than 32 bits"))
    }
}

/// A name of bounded length.
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        if name.len() > limit::DESC_NAME_LEN {
            let why = format!("a name of {} bytes, expected at most {}", name.len(), limit::DESC_NAME_LEN);
            return Err(serde::de::Error::custom(why));
        }
        Ok(Self(name))
    }
}

impl Vmsd {
    /// Takes the value of one key of an object that describes a structure.
    fn take_key<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "vmsd_name" => self.vmsd_name = map.next_value::<Name>()?.0,
            "version" => self.version = map.next_value()?,
            "fields" => {
                self.fields = map.next_value()?;
                self.has_fields = true;
            }
            "subsections" => {
                self.subsections = map.next_value()?;
                if self.subsections.iter().any(|subsection| subsection.vmsd_name.is_empty()) {
                    return Err(serde::de::Error::missing_field("vmsd_name"));
                }
            }
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

#[derive(Default)]
struct FieldParts {
    name: Option<String>,
    array_len: Option<u64>,
    index: Option<u64>,
    type_name: Option<String>,
    size: Option<u64>,
    nested: Vec<Vmsd>,
}

impl FieldParts {
    /// Takes a key of a description that stands in the field itself. Each
    /// `vmsd_name` begins another: one for each element of a list.
    fn take_inline<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let begins = key == "vmsd_name" || self.nested.is_empty();
        match self.nested.last_mut() {
            Some(last) if !begins => last.take_key(key, map),
            _ => {
                let mut vmsd = Vmsd::default();
                vmsd.take_key(key, map)?;
                self.nested.push(vmsd);
                Ok(())
            }
        }
    }
}

deserialize_object!(
    FieldDesc,
    "a field: an object with \"name\", \"type\" and \"size\"",
    FieldParts::default(),
    |this, key, map| {
        match key {
            "name" => this.name = Some(map.next_value::<Name>()?.0),
            "array_len" => this.array_len = Some(map.next_value()?),
            "index" => this.index = Some(map.next_value()?),
            "type" => this.type_name = Some(map.next_value()?),
            "size" => this.size = Some(map.next_value()?),
            "struct" => this.nested.push(map.next_value()?),
            "vmsd_name" | "version" | "fields" | "subsections" => this.take_inline(key, &mut map)?,
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
    },
    |parts: FieldParts| {
        let type_name = parts.type_name.ok_or("type")?;
        Ok(FieldDesc {
            name: parts.name.ok_or("name")?,
            array_len: parts.array_len,
            index: parts.index,
            kind: FieldType::of(&type_name),
            type_name,
            size: parts.size.ok_or("size")?,
            nested: parts.nested,
        })
    }
);
