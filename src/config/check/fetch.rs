//! What the keys of `[fetch]` allow, and what they mean to each other.

use std::{net::Ipv6Addr, num::NonZeroU16, path::PathBuf};

use super::{
    Checked, DAY, HOUR, MINUTE, TENTH, Wrong, duration, filled, host, hub::proxy_through, number,
    path, secs,
};
use crate::config::{
    raw::RawFetch,
    valid::{ClientCertificateConfig, FetchConfig, FetchProxy},
};

/// Slower, several connections would each look like a server that drips.
const SLOWEST: u64 = 16 << 10;
const FASTEST: u64 = 1 << 30;

pub(super) fn fetch(fetch: &RawFetch) -> Checked<FetchConfig> {
    Ok(FetchConfig {
        ca_file: path("fetch.ca_file", &fetch.ca_file)?,
        insecure_hosts: insecure_hosts(&fetch.insecure_hosts)?,
        connect_timeout: duration(
            "fetch.connect_timeout",
            fetch.connect_timeout,
            secs(1)..=MINUTE * 5,
        )?,
        read_timeout: duration(
            "fetch.read_timeout",
            fetch.read_timeout,
            secs(1)..=MINUTE * 10,
        )?,
        give_up_after: duration(
            "fetch.give_up_after",
            fetch.give_up_after,
            secs(1)..=DAY * 30,
        )?,
        retry_max: duration("fetch.retry_max", fetch.retry_max, TENTH..=HOUR)?,
        max_redirects: number("fetch.max_redirects", fetch.max_redirects, 0..=20)?,
        authorization_file: authorization_file(fetch)?,
        authorization_hosts: trusted_hosts(
            "fetch.authorization_hosts",
            &fetch.authorization_hosts,
        )?,
        connections: number("fetch.connections", fetch.connections, 1..=16)?.into(),
        rate_limit: rate_limit(&fetch.rate_limit)?,
        proxy: proxy(fetch)?,
        client_certificate: client_certificate(fetch)?,
    })
}

/// Bytes a second: digits, and `K`, `M` or `G` for powers of 1024, as `curl --limit-rate` takes them.
fn rate_limit(text: &str) -> Checked<Option<u64>> {
    if text.is_empty() {
        return Ok(None);
    }
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1_u64),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    plain
        .then(|| digits.parse::<u64>().ok()?.checked_mul(unit))
        .flatten()
        .filter(|rate| (SLOWEST..=FASTEST).contains(rate))
        .map(Some)
        .ok_or_else(|| {
            Wrong::new(
                "fetch.rate_limit",
                format!(
                    "is `{text}`; give bytes a second from \"16K\" to \"1G\", such as \"500K\" or \"2M\", or \"\" for no limit"
                ),
            )
        })
}

fn proxy(fetch: &RawFetch) -> Checked<FetchProxy> {
    const PROXY: &str = "fetch.proxy";
    const AUTHORIZATION: &str = "fetch.proxy_authorization_file";
    let authorization_file = path(AUTHORIZATION, &fetch.proxy_authorization_file)?;
    let without = match fetch.proxy.as_str() {
        "" => FetchProxy::Environment,
        "none" => FetchProxy::Direct,
        text => {
            return proxy_through(PROXY, AUTHORIZATION, text, authorization_file)
                .map(FetchProxy::Through);
        }
    };
    match authorization_file {
        Some(_) => Err(Wrong::new(
            AUTHORIZATION,
            "is given, but no fetch.proxy that it is for",
        )),
        None => Ok(without),
    }
}

/// A certificate says who this device is, so whoever chooses an image's address must not choose who sees it.
fn client_certificate(fetch: &RawFetch) -> Checked<Option<ClientCertificateConfig>> {
    const CERTIFICATE: &str = "fetch.client_certificate_file";
    const KEY: &str = "fetch.client_key_file";
    const HOSTS: &str = "fetch.client_certificate_hosts";
    let hosts = trusted_hosts(HOSTS, &fetch.client_certificate_hosts)?;
    let files = (
        path(CERTIFICATE, &fetch.client_certificate_file)?,
        path(KEY, &fetch.client_key_file)?,
    );
    match files {
        (None, None) => Ok(None),
        (Some(_), None) => Err(Wrong::new(
            KEY,
            "is missing while fetch.client_certificate_file is there; name the certificate's private key",
        )),
        (None, Some(_)) => Err(Wrong::new(
            CERTIFICATE,
            "is missing while fetch.client_key_file is there; name the key's certificate",
        )),
        (Some(_), Some(_)) if hosts.is_empty() => Err(Wrong::new(
            CERTIFICATE,
            "is given, but no host that may see it; list the hosts of your images in \
             fetch.client_certificate_hosts",
        )),
        (Some(certificate_file), Some(key_file)) => Ok(Some(ClientCertificateConfig {
            certificate_file,
            key_file,
            hosts,
        })),
    }
}

fn insecure_hosts(values: &[String]) -> Checked<Vec<String>> {
    const KEY: &str = "fetch.insecure_hosts";
    filled(KEY, values)?
        .iter()
        .map(|value| host(KEY, value).map(str::to_owned))
        .collect()
}

/// Whoever may send an update names the image's host: the header must not go wherever they like.
fn authorization_file(fetch: &RawFetch) -> Checked<Option<PathBuf>> {
    const KEY: &str = "fetch.authorization_file";
    let file = path(KEY, &fetch.authorization_file)?;
    if file.is_some() && fetch.authorization_hosts.is_empty() {
        return Err(Wrong::new(
            KEY,
            "is given, but no host that its header may be sent to; list the hosts of your images in \
             fetch.authorization_hosts",
        ));
    }
    Ok(file)
}

/// Hosts that are told a secret, or who this device is.
fn trusted_hosts(key: &str, values: &[String]) -> Checked<Vec<String>> {
    let valid = |value: &str| {
        let (name, port) = match value.rsplit_once(':') {
            // Within an IPv6 address.
            Some((_, rest)) if rest.ends_with(']') => (value, None),
            Some((name, port)) => (name, Some(port)),
            None => (value, None),
        };
        let address = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
        let plain = |name: &str| !name.contains([':', '[', ']', '/', '@', '?', '#', '*', ' ']);
        !name.is_empty()
            && address.map_or_else(|| plain(name), |a| a.parse::<Ipv6Addr>().is_ok())
            && port.is_none_or(|port| port.parse::<NonZeroU16>().is_ok())
    };
    match values.iter().find(|value| !valid(value)) {
        Some(value) => Err(Wrong::new(
            key,
            format!(
                "has `{value}`; give a host name, with `:port` if need be, without scheme, path or wildcard"
            ),
        )),
        None => Ok(values.to_vec()),
    }
}
