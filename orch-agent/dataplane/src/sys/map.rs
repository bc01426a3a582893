//! Maps of any layout as bytes: what the kernel knows about one, and its entries.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use super::{BPF_MAP_LOOKUP_BATCH, Batch, bpf, number, open_pinned, owned, pin};

// Commands of bpf(2), from linux/bpf.h.
#[cfg(test)]
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
#[cfg(test)]
const BPF_BTF_LOAD: libc::c_int = 18;
const BPF_BTF_GET_FD_BY_ID: libc::c_int = 19;

/// Map type of a per-CPU hash.
pub const PER_CPU_HASH: u32 = 5;
/// Map type of a per-CPU array.
pub const PER_CPU_ARRAY: u32 = 6;
/// Map type of a per-CPU LRU hash.
pub const LRU_PER_CPU_HASH: u32 = 10;

/// What [`RawMap::update`] does where the key is there or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Update {
    /// Writes in either case (`BPF_ANY`).
    Any = 0,
    /// Refuses with `EEXIST` where it is there (`BPF_NOEXIST`).
    Absent = 1,
}

/// `struct bpf_map_info` as far as it is used; the kernel writes no more than it is given room for.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Info {
    /// `BPF_MAP_TYPE_*`.
    pub kind: u32,
    /// The kernel's number of the map.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value, of one CPU in a per-CPU map.
    pub value_size: u32,
    /// Capacity; bytes of a ring buffer.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
    name: [u8; 16],
    ifindex: u32,
    kernel_value_type: u32,
    device: u64,
    inode: u64,
    /// Number of the BTF object that describes the map; zero for none.
    pub btf: u32,
    /// The key's type in it.
    pub key_type: u32,
    /// The value's type in it.
    pub value_type: u32,
    _pad: u32,
}

/// `struct bpf_btf_info` up to the number.
#[repr(C)]
#[derive(Default)]
struct BtfInfo {
    btf: u64,
    size: u32,
    id: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A map whose keys and values are bytes.
#[derive(Debug)]
pub struct RawMap {
    fd: OwnedFd,
    info: Info,
    /// Bytes of a value in a system call: of all CPUs in a per-CPU map.
    value_bytes: usize,
}

impl RawMap {
    /// Opens a pinned map.
    ///
    /// # Errors
    /// `ENOENT` when there is none; `EINVAL` when the pin is no map's.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(open_pinned(path)?)
    }

    fn of(fd: OwnedFd) -> io::Result<Self> {
        let mut info = Info::default();
        let mut attributes = InfoByFd {
            fd: number(fd.as_fd()),
            length: size_of::<Info>() as u32,
            info: &raw mut info as u64,
        };
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
        let value = info.value_size as usize;
        let value_bytes = match info.kind {
            PER_CPU_HASH | PER_CPU_ARRAY | LRU_PER_CPU_HASH => {
                let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
                value.next_multiple_of(8) * cpus
            }
            _ => value,
        };
        Ok(Self {
            fd,
            info,
            value_bytes,
        })
    }

    /// What the kernel knows about the map.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Pins the map at one more place.
    ///
    /// # Errors
    /// The kernel's, `EEXIST` among them.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        pin(self.fd.as_fd(), path)
    }

    /// The BTF that describes the map, as it was loaded; `None` where it has none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn btf(&self) -> io::Result<Option<Vec<u8>>> {
        if self.info.btf == 0 {
            return Ok(None);
        }
        // The number and the flags: the command reads both.
        let mut by_id = [self.info.btf, 0, 0];
        let fd = owned(bpf(BPF_BTF_GET_FD_BY_ID, &mut by_id)?);
        let mut bytes: Vec<u8> = Vec::new();
        // The first answer says how many bytes there are.
        for _ in 0..2 {
            let mut info = BtfInfo {
                btf: bytes.as_mut_ptr() as u64,
                size: u32::try_from(bytes.len()).map_err(io::Error::other)?,
                id: 0,
            };
            let mut attributes = InfoByFd {
                fd: number(fd.as_fd()),
                length: size_of::<BtfInfo>() as u32,
                info: &raw mut info as u64,
            };
            bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
            bytes.resize(info.size as usize, 0);
        }
        Ok(Some(bytes))
    }

    fn checked(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if key.len() != self.info.key_size as usize || value.len() != self.value_bytes {
            return Err(io::Error::other("a key or value of another length"));
        }
        Ok(())
    }

    /// The value of a key; `None` when it is not there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_bytes];
        self.checked(key, &value)?;
        let mut attributes = Element {
            map_fd: number(self.fd.as_fd()),
            key: key.as_ptr() as u64,
            value: value.as_mut_ptr() as u64,
            ..Element::default()
        };
        match bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes) {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes an entry; whether it was written, which `update` may forbid.
    ///
    /// # Errors
    /// The kernel's, `E2BIG` for a full map among them.
    pub fn update(&self, key: &[u8], value: &[u8], update: Update) -> io::Result<bool> {
        self.checked(key, value)?;
        let mut attributes = Element {
            map_fd: number(self.fd.as_fd()),
            key: key.as_ptr() as u64,
            value: value.as_ptr() as u64,
            flags: update as u64,
            ..Element::default()
        };
        match (bpf(BPF_MAP_UPDATE_ELEM, &mut attributes), update) {
            (Ok(_), _) => Ok(true),
            (Err(error), Update::Absent) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            (Err(error), _) => Err(error),
        }
    }

    /// Gives every entry of a hash, trie or array to `each`, read in batches of `size`. Entries that come and go meanwhile may
    /// be missed or not.
    ///
    /// *Kernel*: hashes and arrays 5.6, tries 5.13.
    ///
    /// # Errors
    /// The kernel's, and those of `each`.
    pub fn for_each(
        &self,
        size: usize,
        mut each: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let (key_size, mut size) = (self.info.key_size as usize, size);
        if key_size == 0 || self.value_bytes == 0 {
            return Err(io::Error::other("the map has no entries to read"));
        }
        // A position is a bucket's number or a key.
        let (mut before, mut after) = (vec![0; key_size.max(4)], vec![0; key_size.max(4)]);
        let mut first = true;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        loop {
            keys.resize(size * key_size, 0);
            values.resize(size * self.value_bytes, 0);
            let mut attributes = Batch {
                in_batch: if first { 0 } else { before.as_ptr() as u64 },
                out_batch: after.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: u32::try_from(size).map_err(io::Error::other)?,
                map_fd: number(self.fd.as_fd()),
                ..Batch::default()
            };
            let last = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // A bucket with more entries than fit, or keys that go as they are read.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    size *= 2;
                    continue;
                }
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                Err(error) => return Err(error),
            };
            let count = (attributes.count as usize).min(size);
            let entries = keys
                .chunks_exact(key_size)
                .zip(values.chunks_exact(self.value_bytes));
            for (key, value) in entries.take(count) {
                each(key, value)?;
            }
            if last {
                return Ok(());
            }
            std::mem::swap(&mut before, &mut after);
            first = false;
        }
    }
}

/// What a test says of a map to make.
#[cfg(test)]
pub struct Make<'a> {
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    /// BTF, and the types of key and value in it.
    pub btf: Option<(&'a [u8], u32, u32)>,
}

#[cfg(test)]
impl Make<'_> {
    /// Makes the map.
    pub fn map(&self) -> io::Result<RawMap> {
        #[repr(C)]
        #[derive(Default)]
        struct Load {
            btf: u64,
            log: u64,
            size: u32,
            log_size: u32,
            log_level: u32,
            _pad: u32,
        }
        #[repr(C)]
        #[derive(Default)]
        struct Create {
            kind: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
            flags: u32,
            inner: u32,
            numa: u32,
            name: [u8; 16],
            ifindex: u32,
            btf_fd: u32,
            key_type: u32,
            value_type: u32,
        }
        let mut create = Create {
            kind: self.kind,
            key_size: self.key_size,
            value_size: self.value_size,
            max_entries: self.max_entries,
            flags: self.flags,
            ..Create::default()
        };
        let mut described = None;
        if let Some((bytes, key, value)) = self.btf {
            let mut load = Load {
                btf: bytes.as_ptr() as u64,
                size: bytes.len() as u32,
                ..Load::default()
            };
            let fd = described.insert(owned(bpf(BPF_BTF_LOAD, &mut load)?));
            create.btf_fd = number(fd.as_fd());
            (create.key_type, create.value_type) = (key, value);
        }
        RawMap::of(owned(bpf(BPF_MAP_CREATE, &mut create)?))
    }
}
