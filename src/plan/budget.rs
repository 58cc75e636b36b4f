//! The memory and descriptors that an engine will need, against what there is.

use thiserror::Error;

use crate::wire::geometry::Geometry;

/// Descriptors the engine holds per lane while its worker starts: two segments, two ends of the bootstrap
/// socket, pidfd, two output pipes, and some to spare.
const DESCRIPTORS_PER_LANE: u64 = 10;
/// Descriptors of the engine itself: epoll, event descriptor, and some to spare.
const DESCRIPTORS_OF_ENGINE: u64 = 4;

/// There is not enough of something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BudgetError {
    /// The stated limit would be exceeded.
    #[error("memory_limit = {limit} bytes: the plan needs {needed} bytes")]
    Limit {
        /// Bytes that would be mapped.
        needed: u64,
        /// The setting.
        limit: u64,
    },
    /// The machine or a memory control group has no head-room.
    #[error("the plan needs {needed} bytes of shared memory, {available} bytes are available")]
    Memory {
        /// Bytes that would be mapped.
        needed: u64,
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

/// Bytes that `lanes` lanes map.
pub(crate) fn mapped_bytes(geometry: &Geometry, lanes: u64) -> u64 {
    geometry.total() as u64 * lanes
}

/// Checks that `lanes` lanes fit.
pub(crate) fn check(
    geometry: &Geometry,
    lanes: u64,
    limit: Option<usize>,
    supply: Supply,
) -> Result<(), BudgetError> {
    let needed = mapped_bytes(geometry, lanes);
    if let Some(limit) = limit.map(|limit| limit as u64)
        && needed > limit
    {
        return Err(BudgetError::Limit { needed, limit });
    }
    if let Some(available) = supply.memory
        && needed > available
    {
        return Err(BudgetError::Memory { needed, available });
    }
    let descriptors = DESCRIPTORS_OF_ENGINE + DESCRIPTORS_PER_LANE * lanes;
    if supply.descriptors_open.saturating_add(descriptors) > supply.descriptor_limit {
        return Err(BudgetError::Descriptors {
            needed: descriptors,
            open: supply.descriptors_open,
            limit: supply.descriptor_limit,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry =
        Geometry { slots: 1024, slot_bytes: 256, request_arena_bytes: 1 << 18, reply_arena_bytes: 1 << 18 };

    #[test]
    fn both_figures_are_named() {
        let plenty = Supply { memory: None, descriptors_open: 10, descriptor_limit: 1024 };
        assert_eq!(check(&GEOMETRY, 4, None, plenty), Ok(()));
        let needed = mapped_bytes(&GEOMETRY, 1);
        assert_eq!(check(&GEOMETRY, 1, Some(1000), plenty), Err(BudgetError::Limit { needed, limit: 1000 }));
        let tight = Supply { memory: Some(needed - 1), ..plenty };
        assert_eq!(
            check(&GEOMETRY, 1, None, tight),
            Err(BudgetError::Memory { needed, available: needed - 1 })
        );
        let few = Supply { descriptor_limit: 20, ..plenty };
        assert_eq!(
            check(&GEOMETRY, 1, None, few),
            Err(BudgetError::Descriptors { needed: 14, open: 10, limit: 20 })
        );
    }
}
