//! The `virtio` blob as JSON.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use crate::error::Error;
use crate::idstr::Idstr;
use crate::json::Hex;
use crate::vmstate::virtio::{
    ModernQueue, PackedQueue, VIRTIO_QUEUE_MAX, Virtio, VirtioElement, VirtioExtra, VirtioSubsections,
    VirtioTransport,
};
use crate::vmstate::{Field, State};

/// A field of type `virtio`.
pub(super) struct VirtioJson<'v, 's> {
    field: &'v Field<'s, 's>,
    outcome: Result<Virtio<'s>, Error>,
    /// Whether the device's own part is a list of requests in flight.
    has_elements: bool,
}

impl<'v, 's> VirtioJson<'v, 's> {
    /// `None` for fields of other types.
    pub(super) fn of(state: &State<'s, 's>, field: &'v Field<'s, 's>) -> Option<Self> {
        let has_elements = state.vmsd.vmsd_name == "virtio-blk";
        Virtio::of(field).map(|outcome| Self { field, outcome, has_elements })
    }
}

impl Serialize for VirtioJson<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("offset", &self.field.offset.0)?;
        map.serialize_entry("length", &self.field.bytes.len())?;
        match &self.outcome {
            Ok(virtio) => self.write(&mut map, virtio)?,
            Err(error) => {
                map.serialize_entry("reason", &error.to_string())?;
                map.serialize_entry("bytes", &Hex(self.field.bytes))?;
            }
        }
        map.end()
    }
}

impl VirtioJson<'_, '_> {
    fn write<M: SerializeMap>(&self, map: &mut M, virtio: &Virtio<'_>) -> Result<(), M::Error> {
        map.serialize_entry("transport", &TransportJson(&virtio.transport))?;
        map.serialize_entry("status", &virtio.status)?;
        map.serialize_entry("isr", &virtio.isr)?;
        map.serialize_entry("queue_sel", &virtio.queue_sel)?;
        map.serialize_entry("guest_features", &virtio.guest_features)?;
        map.serialize_entry("config", &Hex(virtio.config))?;
        map.serialize_entry("queues", &QueuesJson(virtio))?;
        let elements = self.has_elements.then(|| virtio.elements()).flatten();
        map.serialize_entry("device", &DevicePart { virtio, elements })?;
        map.serialize_entry("subsections", &SubsectionsJson(&virtio.subsections))
    }
}

struct TransportJson<'v, 'a>(&'v VirtioTransport<'a>);

impl Serialize for TransportJson<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self.0 {
            VirtioTransport::Pci { config_space, irq_state, msix } => {
                map.serialize_entry("type", "pci")?;
                map.serialize_entry("config_space", &Hex(config_space))?;
                map.serialize_entry("irq_state", irq_state)?;
                map.serialize_entry("msix_table", &msix.map(|msix| Hex(msix.table)))?;
                map.serialize_entry("msix_pending", &msix.map(|msix| Hex(msix.pending)))?;
                map.serialize_entry("config_vector", &msix.map(|msix| msix.config_vector))?;
            }
            VirtioTransport::Mmio { host_features_sel, guest_features_sel, guest_page_shift } => {
                map.serialize_entry("type", "mmio")?;
                map.serialize_entry("host_features_sel", host_features_sel)?;
                map.serialize_entry("guest_features_sel", guest_features_sel)?;
                map.serialize_entry("guest_page_shift", guest_page_shift)?;
            }
            ccw @ VirtioTransport::Ccw { .. } => write_ccw(&mut map, ccw)?,
        }
        map.end()
    }
}

fn write_ccw<M: SerializeMap>(map: &mut M, transport: &VirtioTransport<'_>) -> Result<(), M::Error> {
    let VirtioTransport::Ccw {
        subchannel,
        devno,
        indicators,
        config_vector,
        ind_offset,
        summary_offset,
        thinint_isc,
        revision,
    } = transport
    else {
        return Ok(());
    };
    map.serialize_entry("type", "ccw")?;
    map.serialize_entry("subchannel", &Hex(subchannel))?;
    map.serialize_entry("devno", devno)?;
    for (name, indicator) in ["indicators", "indicators2", "summary_indicator"].iter().zip(indicators) {
        map.serialize_entry(name, &Place { address: indicator.address, length: indicator.len })?;
    }
    map.serialize_entry("config_vector", config_vector)?;
    map.serialize_entry("ind_offset", ind_offset)?;
    map.serialize_entry("summary_offset", summary_offset)?;
    map.serialize_entry("thinint_isc", thinint_isc)?;
    map.serialize_entry("revision", revision)
}

/// A place in the guest's memory.
#[derive(serde::Serialize)]
struct Place {
    address: u64,
    length: i32,
}

/// The queues that the device has, and those of which some table says
/// anything.
struct QueuesJson<'v, 'a>(&'v Virtio<'a>);

impl Serialize for QueuesJson<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(None)?;
        for index in 0..VIRTIO_QUEUE_MAX {
            let queue = QueueJson { virtio: self.0, index };
            if queue.is_used() {
                seq.serialize_element(&queue)?;
            }
        }
        seq.end()
    }
}

struct QueueJson<'v, 'a> {
    virtio: &'v Virtio<'a>,
    index: usize,
}

impl QueueJson<'_, '_> {
    fn modern(&self) -> Option<ModernQueue> {
        self.virtio.subsections.extra.and_then(|extra| extra.queue(self.index))
    }

    /// Whether it is one of the device's queues, or differs from one that was
    /// never touched.
    fn is_used(&self) -> bool {
        let subsections = &self.virtio.subsections;
        let untouched = ModernQueue { num: 0, enabled: false, desc: 0, avail: 0, used: 0 };
        let is_reset = |packed: PackedQueue| {
            let wrap_counters = (packed.last_avail_wrap_counter, packed.used_wrap_counter);
            (packed.last_avail_idx, packed.used_idx, packed.inuse) == (0, 0, 0)
                && matches!(wrap_counters, (true, true) | (false, false))
        };
        self.index < self.virtio.queues.len()
            || subsections.rings(self.index).is_some_and(|rings| rings != (0, 0))
            || subsections.default_num(self.index).is_some_and(|num| num != 0)
            || subsections.packed(self.index).is_some_and(|packed| !is_reset(packed))
            || self.modern().is_some_and(|queue| queue != untouched)
    }
}

impl Serialize for QueueJson<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("index", &self.index)?;
        if let Some(queue) = self.virtio.queues.get(self.index) {
            map.serialize_entry("num", &queue.num)?;
            if let Some(align) = queue.align {
                map.serialize_entry("align", &align)?;
            }
            map.serialize_entry("desc", &queue.desc)?;
            map.serialize_entry("last_avail_idx", &queue.last_avail_idx)?;
            if let Some(vector) = queue.vector {
                map.serialize_entry("vector", &vector)?;
            }
        }
        let subsections = &self.virtio.subsections;
        if let Some((avail, used)) = subsections.rings(self.index) {
            map.serialize_entry("avail", &avail)?;
            map.serialize_entry("used", &used)?;
        }
        if let Some(num) = subsections.default_num(self.index) {
            map.serialize_entry("num_default", &num)?;
        }
        if let Some(packed) = subsections.packed(self.index) {
            map.serialize_entry("packed", &PackedJson(packed))?;
        }
        if let Some(modern) = self.modern() {
            map.serialize_entry("modern", &ModernJson(modern))?;
        }
        map.end()
    }
}

struct PackedJson(PackedQueue);

impl Serialize for PackedJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("last_avail_idx", &self.0.last_avail_idx)?;
        map.serialize_entry("last_avail_wrap_counter", &self.0.last_avail_wrap_counter)?;
        map.serialize_entry("used_idx", &self.0.used_idx)?;
        map.serialize_entry("used_wrap_counter", &self.0.used_wrap_counter)?;
        map.serialize_entry("inuse", &self.0.inuse)?;
        map.end()
    }
}

struct ModernJson(ModernQueue);

impl Serialize for ModernJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("num", &self.0.num)?;
        map.serialize_entry("enabled", &self.0.enabled)?;
        map.serialize_entry("desc", &self.0.desc)?;
        map.serialize_entry("avail", &self.0.avail)?;
        map.serialize_entry("used", &self.0.used)?;
        map.end()
    }
}

struct DevicePart<'v, 'a> {
    virtio: &'v Virtio<'a>,
    elements: Option<Vec<VirtioElement<'a>>>,
}

impl Serialize for DevicePart<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Virtio { device_offset, device, .. } = self.virtio;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("offset", &device_offset.0)?;
        map.serialize_entry("length", &device.len())?;
        match &self.elements {
            Some(elements) => {
                let elements: Vec<_> = elements.iter().map(ElementJson).collect();
                map.serialize_entry("elements", &elements)?;
            }
            None => map.serialize_entry("bytes", &Hex(device))?,
        }
        map.end()
    }
}

struct ElementJson<'v, 'a>(&'v VirtioElement<'a>);

impl Serialize for ElementJson<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("offset", &self.0.offset.0)?;
        map.serialize_entry("length", &self.0.bytes.len())?;
        map.serialize_entry("words", &self.0.words)?;
        map.end()
    }
}

struct SubsectionsJson<'v, 'a>(&'v VirtioSubsections<'a>);

impl Serialize for SubsectionsJson<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let all = self.0;
        let mut map = serializer.serialize_map(None)?;
        let bytes = [
            ("device_endian", all.device_endian),
            ("broken", all.broken),
            ("started", all.started),
            ("disabled", all.disabled),
        ];
        for (name, value) in bytes {
            if let Some(value) = value {
                map.serialize_entry(name, &value)?;
            }
        }
        if let Some(features) = all.features_high {
            map.serialize_entry("guest_features_high", &features)?;
        }
        if let Some(extra) = &all.extra {
            map.serialize_entry("extra_state", &ExtraJson(extra))?;
        }
        for unknown in &all.unknown {
            map.serialize_entry(&Idstr::from(unknown.name).to_string(), &Hex(unknown.bytes))?;
        }
        map.end()
    }
}

struct ExtraJson<'v, 'a>(&'v VirtioExtra<'a>);

impl Serialize for ExtraJson<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let (Some(dfselect), Some(gfselect)) = (self.0.dfselect, self.0.gfselect) {
            map.serialize_entry("dfselect", &dfselect)?;
            map.serialize_entry("gfselect", &gfselect)?;
        }
        map.serialize_entry("guest_features", &self.0.guest_features)?;
        if let Some(features) = self.0.guest_features_high {
            map.serialize_entry("guest_features_high", &features)?;
        }
        map.end()
    }
}
