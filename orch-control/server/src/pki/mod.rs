//! The cluster's own certificate authority, and everything it signs.
//!
//! All of it lives in one folder, `DIR/pki`, as PEM: `NAME.crt` beside `NAME.key` (mode 0600). What exists and is
//! still good is kept; what is missing, near its end or made for other names is issued again. Format: X.509
//! (RFC 5280) with the subject conventions of Kubernetes: the common name is the user, organisations its groups.

pub mod kubeconfig;

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::Write as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    str::FromStr as _,
};

use jiff::{Timestamp, ToSpan as _, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

/// The group whose members may do everything.
pub const SYSTEM_MASTERS: &str = "system:masters";
/// The group of every node's own identity.
pub const SYSTEM_NODES: &str = "system:nodes";

const CA_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 365;
/// A leaf with less than this left is issued again.
const RENEW_DAYS: i64 = 30;

/// Why a certificate or key could not be made, read or kept.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file or folder could not be used.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file does not hold what its name says.
    #[error("{path} is not usable: {reason}")]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate could not be signed.
    #[error("sign the certificate of {subject}: {source}")]
    Sign {
        /// Whose certificate.
        subject: String,
        /// Why not.
        source: rcgen::Error,
    },
    /// One of a certificate's names is no DNS name.
    #[error("{name:?} cannot stand in a certificate: {source}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        source: rcgen::Error,
    },
}

/// A certificate and its private key, both PEM; the certificate is not followed by its issuer.
#[derive(Clone)]
pub struct Issued {
    /// The certificate, PEM.
    pub cert_pem: String,
    /// The private key, PKCS #8 PEM.
    pub key_pem: String,
}

/// What a new node needs to join.
pub struct NodeCredentials {
    /// Client certificate for `system:node:NAME` in `system:nodes`.
    pub client: Issued,
    /// Serving certificate of the node's kubelet API.
    pub serving: Issued,
}

/// The authority and the folder it is kept in.
pub struct Pki {
    dir: PathBuf,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

/// What a leaf certificate is for.
struct Leaf<'a> {
    common_name: &'a str,
    organization: Option<&'a str>,
    sans: BTreeSet<String>,
    usage: ExtendedKeyUsagePurpose,
}

impl Pki {
    /// Opens `DATA_DIR/pki`, and makes the authority when there is none.
    ///
    /// # Errors
    /// When the folder cannot be used, or holds an authority that cannot be read: it is never replaced.
    pub fn open(data_dir: &Path) -> Result<Self, PkiError> {
        let dir = data_dir.join("pki");
        fs::create_dir_all(&dir).map_err(io("create", &dir))?;
        // `serve` and `issue-node` may start at once: only one of them makes the authority.
        let lock_path = dir.join(".lock");
        let lock = File::create(&lock_path).map_err(io("create", &lock_path))?;
        lock.lock().map_err(io("lock", &lock_path))?;

        let existing = read_pair(&dir, "ca")?;
        let ca = match existing {
            Some(pair) => pair,
            None => {
                let pair = new_authority()?;
                write_pair(&dir, "ca", &pair)?;
                pair
            }
        };
        let key_path = dir.join("ca.key");
        let key = KeyPair::from_pem(&ca.key_pem).map_err(|e| PkiError::Unusable {
            path: key_path,
            reason: e.to_string(),
        })?;
        let issuer = Issuer::from_ca_cert_pem(&ca.cert_pem, key).map_err(|e| PkiError::Unusable {
            path: dir.join("ca.crt"),
            reason: e.to_string(),
        })?;
        Ok(Self {
            dir,
            ca_pem: ca.cert_pem,
            issuer,
        })
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The API server's serving certificate for `names` (DNS names and addresses).
    ///
    /// # Errors
    /// When it cannot be read, signed or written.
    pub fn server(&self, names: &BTreeSet<String>) -> Result<Issued, PkiError> {
        self.keep(
            "apiserver",
            &Leaf {
                common_name: "kube-apiserver",
                organization: None,
                sans: names.clone(),
                usage: ExtendedKeyUsagePurpose::ServerAuth,
            },
        )
    }

    /// The administrator's client certificate: `kubernetes-admin` in `system:masters`.
    ///
    /// # Errors
    /// When it cannot be read, signed or written.
    pub fn admin(&self) -> Result<Issued, PkiError> {
        self.keep("admin", &client("kubernetes-admin", SYSTEM_MASTERS))
    }

    /// The client certificate that the API server shows to kubelets.
    ///
    /// # Errors
    /// When it cannot be read, signed or written.
    pub fn kubelet_client(&self) -> Result<Issued, PkiError> {
        self.keep(
            "apiserver-kubelet-client",
            &client("kube-apiserver-kubelet-client", SYSTEM_MASTERS),
        )
    }

    /// The key that signs service account tokens: PKCS #8 PEM, P-256.
    ///
    /// # Errors
    /// When it cannot be read, made or written.
    pub fn service_account_key(&self) -> Result<String, PkiError> {
        let path = self.dir.join("sa.key");
        match fs::read_to_string(&path) {
            Ok(pem) => {
                KeyPair::from_pem(&pem).map_err(|e| PkiError::Unusable {
                    path,
                    reason: e.to_string(),
                })?;
                Ok(pem)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let key = KeyPair::generate().map_err(|source| PkiError::Sign {
                    subject: "service accounts".into(),
                    source,
                })?;
                let pem = key.serialize_pem();
                write_file(&self.dir.join("sa.crt"), &key.public_key_pem(), 0o644)?;
                write_file(&path, &pem, 0o600)?;
                Ok(pem)
            }
            Err(source) => Err(PkiError::Io {
                action: "read",
                path,
                source,
            }),
        }
    }

    /// Signs a node's two certificates; `ips` are all its addresses, of either family. They are not kept here: their
    /// place is on the node.
    ///
    /// # Errors
    /// When `node` cannot stand in a certificate, or signing fails.
    pub fn issue_node(&self, node: &str, ips: &[IpAddr]) -> Result<NodeCredentials, PkiError> {
        let user = format!("system:node:{node}");
        Ok(NodeCredentials {
            client: self.sign(&client(&user, SYSTEM_NODES))?,
            serving: self.sign(&Leaf {
                common_name: &user,
                organization: Some(SYSTEM_NODES),
                sans: ips
                    .iter()
                    .map(IpAddr::to_string)
                    .chain([node.to_owned()])
                    .collect(),
                usage: ExtendedKeyUsagePurpose::ServerAuth,
            })?,
        })
    }

    fn keep(&self, name: &str, leaf: &Leaf<'_>) -> Result<Issued, PkiError> {
        if let Some(pair) = read_pair(&self.dir, name)?
            && self.still_good(&pair, leaf)
        {
            return Ok(pair);
        }
        let pair = self.sign(leaf)?;
        write_pair(&self.dir, name, &pair)?;
        Ok(pair)
    }

    /// Whether `pair` was signed by this authority for exactly `leaf` and has enough time left.
    fn still_good(&self, pair: &Issued, leaf: &Leaf<'_>) -> bool {
        let (Ok(cert), Ok(ca)) = (pem::parse(&pair.cert_pem), pem::parse(&self.ca_pem)) else {
            return false;
        };
        let Ok((_, cert)) = x509_parser::certificate::X509Certificate::from_der(cert.contents()) else {
            return false;
        };
        let Ok((_, ca)) = x509_parser::certificate::X509Certificate::from_der(ca.contents()) else {
            return false;
        };
        let key_matches = KeyPair::from_pem(&pair.key_pem)
            .is_ok_and(|key| rcgen::PublicKeyData::subject_public_key_info(&key) == cert.public_key().raw);
        let left = cert.validity().not_after.timestamp() - Timestamp::now().as_second();
        key_matches
            && left > RENEW_DAYS * 86_400
            && cert.verify_signature(Some(ca.public_key())).is_ok()
            && subject_alternative_names(&cert) == leaf.sans
    }

    fn sign(&self, leaf: &Leaf<'_>) -> Result<Issued, PkiError> {
        let failed = |source| PkiError::Sign {
            subject: leaf.common_name.to_owned(),
            source,
        };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        validity(&mut params, LEAF_DAYS);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, leaf.common_name);
        if let Some(organization) = leaf.organization {
            params
                .distinguished_name
                .push(DnType::OrganizationName, organization);
        }
        for name in &leaf.sans {
            params.subject_alt_names.push(match IpAddr::from_str(name) {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.as_str().try_into().map_err(|source| PkiError::Name {
                    name: name.clone(),
                    source,
                })?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![leaf.usage.clone()];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Issued {
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

fn client<'a>(user: &'a str, group: &'a str) -> Leaf<'a> {
    Leaf {
        common_name: user,
        organization: Some(group),
        sans: BTreeSet::new(),
        usage: ExtendedKeyUsagePurpose::ClientAuth,
    }
}

fn new_authority() -> Result<Issued, PkiError> {
    let failed = |source| PkiError::Sign {
        subject: "orch-ca".into(),
        source,
    };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    validity(&mut params, CA_DAYS);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "orch-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    let cert = params.self_signed(&key).map_err(failed)?;
    Ok(Issued {
        cert_pem: cert.pem(),
        key_pem: key.serialize_pem(),
    })
}

/// From yesterday, so that a clock that lags a little accepts it, for `days`.
fn validity(params: &mut CertificateParams, days: i64) {
    let date = |offset: i64| {
        let day = Timestamp::now()
            .to_zoned(TimeZone::UTC)
            .date()
            .saturating_add(offset.days());
        rcgen::date_time_ymd(
            day.year().into(),
            day.month().unsigned_abs(),
            day.day().unsigned_abs(),
        )
    };
    params.not_before = date(-1);
    params.not_after = date(days);
}

fn subject_alternative_names(cert: &x509_parser::certificate::X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(extension)) = cert.subject_alternative_name() else {
        return BTreeSet::new();
    };
    extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
                Ok(v4) => Some(IpAddr::from(v4).to_string()),
                Err(_) => <[u8; 16]>::try_from(*bytes)
                    .ok()
                    .map(|v6| IpAddr::from(v6).to_string()),
            },
            _ => None,
        })
        .collect()
}

fn read_pair(dir: &Path, name: &str) -> Result<Option<Issued>, PkiError> {
    let read = |path: PathBuf| match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::Io {
            action: "read",
            path,
            source,
        }),
    };
    let cert_pem = read(dir.join(format!("{name}.crt")))?;
    let key_pem = read(dir.join(format!("{name}.key")))?;
    match (cert_pem, key_pem) {
        (Some(cert_pem), Some(key_pem)) => Ok(Some(Issued { cert_pem, key_pem })),
        // Certificates of a lost authority would all turn invalid at once: a person has to decide that.
        (Some(_), None) if name == "ca" => Err(PkiError::Unusable {
            path: dir.join("ca.crt"),
            reason: "ca.key is missing beside it".into(),
        }),
        _ => Ok(None),
    }
}

/// The key goes first: a certificate is never there without its key.
fn write_pair(dir: &Path, name: &str, pair: &Issued) -> Result<(), PkiError> {
    write_file(&dir.join(format!("{name}.key")), &pair.key_pem, 0o600)?;
    write_file(&dir.join(format!("{name}.crt")), &pair.cert_pem, 0o644)
}

/// Writes `text` whole or not at all, readable as `mode` says from the first byte on.
///
/// # Errors
/// When the folder cannot be written.
pub fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(io("create", parent))?;
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .map_err(io("create", &temporary))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(io("write", path))
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> PkiError + use<'a> {
    move |source| PkiError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_good_is_kept_and_what_changed_is_issued_again() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let first = pki.server(&names(&["localhost", "127.0.0.1"])).unwrap();
        let again = Pki::open(dir.path()).unwrap();
        assert_eq!(pki.ca_pem(), again.ca_pem());
        assert_eq!(
            first.cert_pem,
            again
                .server(&names(&["localhost", "127.0.0.1"]))
                .unwrap()
                .cert_pem
        );
        let other = again
            .server(&names(&["localhost", "127.0.0.1", "10.96.0.1"]))
            .unwrap();
        assert_ne!(first.cert_pem, other.cert_pem);
        assert_eq!(
            pki.service_account_key().unwrap(),
            again.service_account_key().unwrap()
        );
        for key in ["ca.key", "apiserver.key", "sa.key"] {
            let mode = fs::metadata(dir.path().join("pki").join(key))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn a_lost_authority_key_is_not_papered_over() {
        let dir = tempfile::tempdir().unwrap();
        Pki::open(dir.path()).unwrap();
        fs::remove_file(dir.path().join("pki/ca.key")).unwrap();
        assert!(matches!(Pki::open(dir.path()), Err(PkiError::Unusable { .. })));
    }

    #[test]
    fn a_node_is_who_its_certificate_says() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let node = pki
            .issue_node(
                "node1",
                &["172.30.0.11".parse().unwrap(), "fd00:30::11".parse().unwrap()],
            )
            .unwrap();
        let der = pem::parse(&node.serving.cert_pem).unwrap();
        let (_, cert) = x509_parser::certificate::X509Certificate::from_der(der.contents()).unwrap();
        let names = names(&["node1", "172.30.0.11", "fd00:30::11"]);
        assert_eq!(subject_alternative_names(&cert), names);
        assert!(
            pki.issue_node("bad\u{e9}", &["172.30.0.11".parse().unwrap()])
                .is_err()
        );
    }
}
