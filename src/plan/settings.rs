//! The settings of an engine: every limit a named field with a default, checked once.

use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use thiserror::Error;

use crate::base::limits::{ARENA_BYTES, BRANCHES, HISTORY, RING_SLOTS, ROOTS, SLOT_BYTES};
use crate::base::waiting::Waiting;
use crate::plan::loopback::Loopback;
use crate::wire::geometry::Geometry;

/// Where the groups of a plan run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Profile {
    /// In this process, in the caller's thread: for tests, comparisons and machines without the rest.
    Memory,
    /// Each group in a supervised child process.
    #[default]
    ProcessSupervisor,
}

impl Profile {
    /// The profile's stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::ProcessSupervisor => "process_supervisor",
        }
    }
}

/// A setting that is refused.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{field} = {value}: {rule}")]
pub struct SettingsError {
    /// The field's name.
    pub field: &'static str,
    /// The value as it was given.
    pub value: String,
    /// What it must be.
    pub rule: String,
}

/// All settings. Times are durations, sizes are bytes.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub profile: Profile,
    pub waiting: Waiting,
    pub slots: usize,
    pub slot_bytes: usize,
    pub request_arena_bytes: usize,
    pub reply_arena_bytes: usize,
    pub max_in_flight: usize,
    pub max_branches: usize,
    pub forward_bytes: usize,
    pub completed_history: usize,
    pub memory_limit: Option<usize>,
    pub pin: Option<usize>,
    pub start_timeout: Duration,
    pub term_timeout: Duration,
    pub heartbeat_timeout: Duration,
    pub hung_after: Duration,
    pub doorbell_address: IpAddr,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            profile: Profile::default(),
            waiting: Waiting::default(),
            slots: 1024,
            slot_bytes: 256,
            request_arena_bytes: 256 << 10,
            reply_arena_bytes: 256 << 10,
            max_in_flight: 1024,
            max_branches: 8,
            forward_bytes: 16 << 20,
            completed_history: 65_536,
            memory_limit: None,
            pin: None,
            start_timeout: Duration::from_secs(30),
            term_timeout: Duration::from_secs(2),
            heartbeat_timeout: Duration::from_secs(10),
            hung_after: Duration::from_secs(60),
            doorbell_address: Loopback::default().address(),
        }
    }
}

impl Settings {
    /// Checks every field; the first that breaks its rule is named.
    pub fn check(&self) -> Result<Geometry, SettingsError> {
        power_of_two("slots", self.slots, RING_SLOTS)?;
        power_of_two("slot_bytes", self.slot_bytes, SLOT_BYTES)?;
        power_of_two("request_arena_bytes", self.request_arena_bytes, ARENA_BYTES)?;
        power_of_two("reply_arena_bytes", self.reply_arena_bytes, ARENA_BYTES)?;
        within("max_in_flight", self.max_in_flight, ROOTS)?;
        within("max_branches", self.max_branches, BRANCHES)?;
        within("forward_bytes", self.forward_bytes, ARENA_BYTES)?;
        within("completed_history", self.completed_history, HISTORY)?;
        Loopback::check("doorbell_address", self.doorbell_address)?;
        let (ms, day) = (Duration::from_millis, Duration::from_secs(86_400));
        between("start_timeout", self.start_timeout, ms(1), day)?;
        between("term_timeout", self.term_timeout, ms(1), day)?;
        // Below that, what a busy machine does to a healthy worker would cost its life.
        between("heartbeat_timeout", self.heartbeat_timeout, ms(3000), day)?;
        between("hung_after", self.hung_after, ms(1000), day)?;
        Ok(Geometry {
            slots: self.slots,
            slot_bytes: self.slot_bytes,
            request_arena_bytes: self.request_arena_bytes,
            reply_arena_bytes: self.reply_arena_bytes,
        })
    }
}

impl Settings {
    /// Checks the processor against those that this process may use.
    pub fn check_pin(&self, allowed: &[usize]) -> Result<(), SettingsError> {
        match self.pin {
            Some(processor) if !allowed.contains(&processor) => {
                let rule = format!("must be a processor that this process may use: {allowed:?}");
                Err(SettingsError { field: "pin", value: processor.to_string(), rule })
            }
            _ => Ok(()),
        }
    }
}

fn between(
    field: &'static str,
    value: Duration,
    least: Duration,
    most: Duration,
) -> Result<(), SettingsError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let rule = match least.as_millis() {
        least @ 1..1000 => format!("must be between {least} ms and one day"),
        least => format!("must be between {} s and one day", least / 1000),
    };
    Err(SettingsError { field, value: format!("{value:?}"), rule })
}

fn within<T: PartialOrd + Display + Copy>(
    field: &'static str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), SettingsError> {
    if range.contains(&value) {
        return Ok(());
    }
    let rule = format!("must be between {} and {}", range.start(), range.end());
    Err(SettingsError { field, value: value.to_string(), rule })
}

fn power_of_two(
    field: &'static str,
    value: usize,
    range: RangeInclusive<usize>,
) -> Result<(), SettingsError> {
    if value.is_power_of_two() && range.contains(&value) {
        return Ok(());
    }
    let rule = format!("must be a power of two between {} and {}", range.start(), range.end());
    Err(SettingsError { field, value: value.to_string(), rule })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_01_a_refused_setting_names_field_value_and_rule() {
        let refused = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.check().unwrap_err().to_string()
        };
        assert!(Settings::default().check().is_ok());
        assert_eq!(refused(|s| s.slots = 3), "slots = 3: must be a power of two between 2 and 65536");
        assert_eq!(
            refused(|s| s.slot_bytes = 64),
            "slot_bytes = 64: must be a power of two between 128 and 4096"
        );
        assert!(refused(|s| s.request_arena_bytes = 0).starts_with("request_arena_bytes = 0: must be"));
        assert!(refused(|s| s.reply_arena_bytes = 5000).starts_with("reply_arena_bytes = 5000: must be"));
        assert_eq!(refused(|s| s.max_in_flight = 0), "max_in_flight = 0: must be between 1 and 1048576");
        assert_eq!(refused(|s| s.max_branches = 17), "max_branches = 17: must be between 1 and 16");
        assert!(refused(|s| s.forward_bytes = 1).starts_with("forward_bytes = 1: must be between 4096 and"));
        assert!(refused(|s| s.completed_history = 0).starts_with("completed_history = 0: must be"));
        assert_eq!(
            refused(|s| s.start_timeout = Duration::ZERO),
            "start_timeout = 0ns: must be between 1 ms and one day"
        );
        let pinned = Settings { pin: Some(9), ..Settings::default() };
        assert_eq!(
            pinned.check_pin(&[0, 1]).unwrap_err().to_string(),
            "pin = 9: must be a processor that this process may use: [0, 1]"
        );
        assert!(refused(|s| s.term_timeout = Duration::MAX).starts_with("term_timeout = "));
        assert_eq!(
            refused(|s| s.heartbeat_timeout = Duration::from_secs(1)),
            "heartbeat_timeout = 1s: must be between 3 s and one day"
        );
        assert!(
            refused(|s| s.hung_after = Duration::ZERO).starts_with("hung_after = 0ns: must be between 1 s")
        );
        assert_eq!(
            refused(|s| s.doorbell_address = "10.0.0.1".parse().expect("an address")),
            "doorbell_address = 10.0.0.1: must be in 127.0.0.0/8, or ::1"
        );
    }
}
