//! Where the doorbell may be reached: on this machine only.

use std::net::{IpAddr, Ipv4Addr};

use super::settings::SettingsError;

/// An address of 127.0.0.0/8, or ::1. There is no other way to make one than [`Loopback::check`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loopback(IpAddr);

impl Loopback {
    /// Checks an address that a setting states.
    ///
    /// # Errors
    /// Any other address, such as the unspecified one, and also 127.0.0.1 written as an IPv6 address.
    pub fn check(field: &'static str, address: IpAddr) -> Result<Self, SettingsError> {
        if address.is_loopback() {
            return Ok(Self(address));
        }
        let rule = "must be in 127.0.0.0/8, or ::1".into();
        Err(SettingsError { field, value: address.to_string(), rule })
    }

    /// The address.
    pub fn address(self) -> IpAddr {
        self.0
    }
}

impl Default for Loopback {
    /// 127.0.0.1.
    fn default() -> Self {
        Self(Ipv4Addr::LOCALHOST.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_ipc_07_an_address_that_is_not_loopback_is_refused_by_name_value_and_rule() {
        let check = |address: &str| {
            Loopback::check("doorbell_address", address.parse().expect("an address"))
                .map(Loopback::address)
                .map_err(|error| error.to_string())
        };
        for address in ["127.0.0.1", "127.0.0.0", "127.255.255.255", "127.9.8.7", "::1"] {
            assert_eq!(check(address), Ok(address.parse().expect("an address")));
        }
        for address in [
            "0.0.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "10.0.0.1",
            "255.255.255.255",
            "169.254.0.1",
            "::",
            "::2",
            "::ffff:127.0.0.1",
            "fe80::1",
            "::127.0.0.1",
        ] {
            let shown: IpAddr = address.parse().expect("an address");
            let error = format!("doorbell_address = {shown}: must be in 127.0.0.0/8, or ::1");
            assert_eq!(check(address), Err(error));
        }
        assert_eq!(Loopback::default().address().to_string(), "127.0.0.1");
    }
}
