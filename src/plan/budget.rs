//! The memory and descriptors that an engine will need, against what there is.

use thiserror::Error;

use crate::wire::geometry::Geometry;

/// Descriptors the engine holds per lane while its worker starts: two segments, two ends of the bootstrap
/// socket, pidfd, two output pipes, the doorbell's listener with its connection and the set that watches both.
const DESCRIPTORS_PER_LANE: u64 = 10;
/// Descriptors of the engine itself: two for each of its threads that wait, and some to spare.
const DESCRIPTORS_OF_ENGINE: u64 = 6;

/// There is not enough of something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BudgetError {
    /// The stated limit would be exceeded.
    #[error("memory_limit = {limit} bytes: the plan needs {needed} bytes, {per_lane} per lane")]
    Limit {
        /// Bytes that would be mapped.
        needed: u64,
        /// Of these, for each worker process.
        per_lane: u64,
        /// The setting.
        limit: u64,
    },
    /// The machine or a memory control group has no head-room.
    #[error(
        "the plan needs {needed} bytes of shared memory, {per_lane} per lane; {available} bytes are available"
    )]
    Memory {
        /// Bytes that would be mapped.
        needed: u64,
        /// Of these, for each worker process.
        per_lane: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// RLIMIT_NOFILE is too low.
    #[error("the plan needs {needed} descriptors beside the {open} open ones, RLIMIT_NOFILE is {limit}")]
    Descriptors {
        /// Descriptors that would be opened.
        needed: u64,
        /// Descriptors open now.
        open: u64,
        /// The limit.
        limit: u64,
    },
}

/// What there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Supply {
    /// Bytes, `None` where nothing limits them visibly.
    pub memory: Option<u64>,
    /// Descriptors open now.
    pub descriptors_open: u64,
    /// RLIMIT_NOFILE.
    pub descriptor_limit: u64,
}

/// What the lanes of a plan take; one lane a worker process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Need {
    /// Bytes mapped in all.
    pub bytes: u64,
    /// Of these, for each lane.
    pub bytes_per_lane: u64,
    /// Descriptors that are open at the same time while the workers start.
    pub descriptors: u64,
}

impl Need {
    pub fn new(geometry: &Geometry, lanes: u64) -> Self {
        let bytes_per_lane = geometry.total() as u64;
        Self {
            bytes: bytes_per_lane.saturating_mul(lanes),
            bytes_per_lane,
            descriptors: DESCRIPTORS_OF_ENGINE + DESCRIPTORS_PER_LANE * lanes,
        }
    }
}

/// Checks that `lanes` lanes fit.
pub(crate) fn check(
    geometry: &Geometry,
    lanes: u64,
    limit: Option<usize>,
    supply: Supply,
) -> Result<Need, BudgetError> {
    let need = Need::new(geometry, lanes);
    let (needed, per_lane) = (need.bytes, need.bytes_per_lane);
    if let Some(limit) = limit.map(|limit| limit as u64)
        && needed > limit
    {
        return Err(BudgetError::Limit { needed, per_lane, limit });
    }
    if let Some(available) = supply.memory
        && needed > available
    {
        return Err(BudgetError::Memory { needed, per_lane, available });
    }
    if supply.descriptors_open.saturating_add(need.descriptors) > supply.descriptor_limit {
        return Err(BudgetError::Descriptors {
            needed: need.descriptors,
            open: supply.descriptors_open,
            limit: supply.descriptor_limit,
        });
    }
    Ok(need)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry =
        Geometry { slots: 1024, slot_bytes: 256, request_arena_bytes: 1 << 18, reply_arena_bytes: 1 << 18 };

    const PLENTY: Supply = Supply { memory: None, descriptors_open: 10, descriptor_limit: 1024 };

    #[test]
    fn gate_01_both_figures_are_named() {
        let per_lane = Need::new(&GEOMETRY, 1).bytes;
        assert_eq!(
            check(&GEOMETRY, 1, Some(1000), PLENTY),
            Err(BudgetError::Limit { needed: per_lane, per_lane, limit: 1000 })
        );
        let tight = Supply { memory: Some(per_lane - 1), ..PLENTY };
        assert_eq!(
            check(&GEOMETRY, 1, None, tight),
            Err(BudgetError::Memory { needed: per_lane, per_lane, available: per_lane - 1 })
        );
        let few = Supply { descriptor_limit: 25, ..PLENTY };
        assert_eq!(
            check(&GEOMETRY, 1, None, few),
            Err(BudgetError::Descriptors { needed: 16, open: 10, limit: 25 })
        );
    }

    #[test]
    fn every_lane_is_counted() {
        let one = Need::new(&GEOMETRY, 1);
        let four = check(&GEOMETRY, 4, None, PLENTY).unwrap();
        assert_eq!(four, Need { bytes: 4 * one.bytes, bytes_per_lane: one.bytes, descriptors: 46 });
        let exactly = Some(4 * one.bytes as usize);
        assert!(
            check(&GEOMETRY, 4, exactly, PLENTY).is_ok() && check(&GEOMETRY, 5, exactly, PLENTY).is_err()
        );
        let error = check(&GEOMETRY, 5, exactly, PLENTY).unwrap_err().to_string();
        let all = 5 * one.bytes;
        assert!(error.ends_with(&format!("the plan needs {all} bytes, {} per lane", one.bytes)), "{error}");
    }
}
