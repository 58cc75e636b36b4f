//! Short runs by hand, and many random ones beside a model that knows places and scans everything.

use std::collections::BTreeSet;
use std::time::Instant;

use super::*;

/// Groups of one node each; node and group have the same number.
fn order(reach: &[&[u16]]) -> Order<u64> {
    let groups = (0..reach.len() as u16).collect();
    Order::new(Arc::new(Reach::new(groups, reach.iter().map(|later| later.to_vec()).collect())))
}

fn chain() -> Order<u64> {
    order(&[&[1, 2], &[2], &[]])
}

/// 0 leads to 1 and 2, both lead to 3.
fn diamond() -> Order<u64> {
    order(&[&[1, 2, 3], &[3], &[3], &[]])
}

impl Order<u64> {
    /// One more output of `parent`, which executes.
    fn emit(&mut self, parent: u64, id: u64, node: u16) {
        self.output(parent, id, node, id).expect("the parent executes");
    }

    fn begin(&mut self, input: u64, id: u64) {
        self.input(input, id, 0, id);
    }

    /// All that enter now, in the order in which they do.
    fn enter(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn end_all(&mut self, ids: &[u64]) {
        ids.iter().for_each(|id| self.end(*id));
    }
}

#[test]
fn order_01_a_chain_is_entered_in_order_of_inputs() {
    let mut order = chain();
    (1..=3).for_each(|input| order.begin(input, input * 10));
    assert_eq!(order.enter(), [10, 20, 30]);
    order.emit(30, 31, 1);
    order.end(30);
    order.emit(20, 21, 1);
    assert_eq!(order.enter(), [], "10 has not emitted yet");
    order.emit(10, 11, 1);
    assert_eq!(order.enter(), [11], "10 may emit once more");
    order.end(10);
    assert_eq!(order.enter(), [21], "20 may emit once more");
    order.emit(21, 22, 2);
    order.end_all(&[20, 21]);
    assert_eq!(order.enter(), [31], "11 can still reach the third group");
    order.end(11);
    assert_eq!(order.enter(), [22]);
    order.end_all(&[22, 31]);
    assert!(order.is_empty());
}

#[test]
fn order_01_an_input_without_outputs_holds_up_nobody() {
    let mut order = chain();
    (1..=4).for_each(|input| order.begin(input, input * 10));
    assert_eq!(order.enter(), [10, 20, 30, 40]);
    order.emit(40, 41, 1);
    order.end_all(&[20, 30]);
    assert_eq!(order.enter(), []);
    order.end(10);
    assert_eq!(order.enter(), [41]);
    order.end_all(&[41, 40]);
    assert!(order.is_empty());
}

#[test]
fn order_01_branches_to_different_groups_do_not_wait_for_each_other() {
    let mut order = order(&[&[1, 2], &[], &[]]);
    order.begin(1, 10);
    order.begin(2, 20);
    assert_eq!(order.enter(), [10, 20]);
    order.emit(20, 22, 2);
    order.emit(10, 11, 1);
    order.emit(10, 12, 2);
    assert_eq!(order.enter(), [11, 12]);
    // 11 executes where nothing leads on: it holds up nobody.
    order.end(10);
    assert_eq!(order.enter(), [22]);
}

#[test]
fn order_01_a_diamond_waits_for_its_slow_branch() {
    let mut order = diamond();
    for id in [10, 20] {
        order.begin(id, id);
        assert_eq!(order.enter(), [id]);
        order.emit(id, id + 1, 1);
        order.emit(id, id + 2, 2);
        order.end(id);
        assert_eq!(order.enter(), [id + 1, id + 2]);
        // The second branch emits three outputs; the first has yet to emit.
        (0..3).for_each(|i| order.emit(id + 2, id + 5 + i, 3));
        order.end(id + 2);
        assert_eq!(order.enter(), []);
    }
    // The later input's slow branch is done first.
    order.emit(21, 24, 3);
    order.end(21);
    assert_eq!(order.enter(), []);
    order.emit(11, 14, 3);
    assert_eq!(order.next(), Some(14));
    assert_eq!(order.next(), None);
    order.end(11);
    assert_eq!(order.enter(), [15, 16, 17, 24, 25, 26, 27]);
    order.end_all(&[27, 14, 24, 15, 25, 16, 26, 17]);
    assert!(order.is_empty());
}

#[test]
fn order_01_fan_out_of_fan_out_keeps_the_order_of_paths() {
    let mut order = chain();
    order.begin(1, 1);
    order.begin(2, 2);
    assert_eq!(order.enter(), [1, 2]);
    for child in 0..3 {
        order.emit(2, 20 + child, 1);
        order.emit(1, 10 + child, 1);
    }
    order.end_all(&[2, 1]);
    assert_eq!(order.enter(), [10, 11, 12, 20, 21, 22]);
    // Last things first: each of the six emits two.
    for child in [22, 21, 20, 12, 11, 10] {
        assert_eq!(order.enter(), []);
        order.emit(child, child * 10, 2);
        order.emit(child, child * 10 + 1, 2);
        if child != 10 {
            order.end(child);
        }
    }
    assert_eq!(order.enter(), [100, 101]);
    order.end(10);
    assert_eq!(order.enter(), [110, 111, 120, 121, 200, 201, 210, 211, 220, 221]);
}

#[test]
fn order_01_an_input_that_ends_gives_back_what_is_held_and_makes_room() {
    let mut order = diamond();
    (1..=3).for_each(|input| order.begin(input, input * 10));
    assert_eq!(order.enter(), [10, 20, 30]);
    for id in [10, 20, 30] {
        (1..=3).for_each(|i| order.emit(id, id + i, 1));
    }
    assert_eq!(order.enter(), [11, 12, 13]);
    assert_eq!(order.end_input(2), [21, 22, 23]);
    assert_eq!(order.end_input(2), []);
    assert_eq!(order.output(20, 24, 1, 24), Err(24), "its input has ended");
    order.end(20);
    assert_eq!(order.end_input(1), []);
    assert_eq!(order.enter(), [31, 32, 33]);
    assert_eq!(order.len(), 4);
    order.end_all(&[30, 31, 32, 33]);
    assert!(order.is_empty());
}

#[test]
fn order_01_of_several_answers_the_first_place_counts() {
    let mut order = diamond();
    let answers = |order: &mut Order<u64>, id| order.mark(id).map(|marked| (marked.input, marked.is_first));
    order.begin(1, 10);
    order.begin(2, 20);
    assert_eq!(answers(&mut order, 10), None, "held");
    assert_eq!(order.enter(), [10, 20]);
    order.emit(10, 11, 1);
    assert_eq!(answers(&mut order, 10), Some((1, true)), "nobody has answered");
    order.emit(10, 12, 2);
    assert_eq!(order.enter(), [11, 12]);
    assert_eq!(answers(&mut order, 12), Some((1, false)), "behind the answer of 10");
    assert_eq!(answers(&mut order, 20), Some((2, true)), "of another input");
    assert_eq!(answers(&mut order, 11), Some((1, true)), "before the answer of 10");
    assert_eq!(answers(&mut order, 11), Some((1, false)));
    order.emit(11, 13, 3);
    assert_eq!(order.enter(), [13], "an answer holds nobody up");
    order.end_all(&[10, 11, 12]);
    assert_eq!(answers(&mut order, 13), Some((1, false)), "11 had answered before");
    order.end(13);
    assert_eq!(answers(&mut order, 13), None, "it has ended");
    assert_eq!(order.len(), 1);
    assert_eq!((order.end_input(1), order.end_input(2)), (vec![], vec![]));
    assert!(order.is_empty() && order.marks.is_empty() && order.inputs.is_empty());
}

#[test]
fn order_01_a_held_frame_neither_emits_nor_ends() {
    let mut order = chain();
    order.begin(1, 10);
    order.end(10);
    assert_eq!(order.output(10, 11, 1, 11), Err(11));
    assert_eq!(order.next(), Some(10));
    order.emit(10, 11, 1);
    assert_eq!(order.len(), 2);
}

#[test]
#[should_panic(expected = "inputs are added in their order")]
fn order_01_an_earlier_input_cannot_be_added_later() {
    let mut order = chain();
    order.begin(2, 20);
    order.begin(1, 10);
}

#[test]
fn order_01_an_output_cannot_leave_the_plans_edges() {
    let mut order = diamond();
    order.begin(1, 10);
    assert_eq!(order.enter(), [10]);
    order.emit(10, 11, 1);
    assert_eq!(order.enter(), [11]);
    assert_eq!(order.output(11, 12, 2, 12), Err(12));
    assert!(order.executes(11) && !order.executes(12));
}

#[test]
#[should_panic(expected = "a circle through group 0")]
fn order_01_a_circle_between_groups_is_refused() {
    Reach::new(vec![0, 1, 0], vec![vec![1, 0], vec![0], vec![]]);
}

// ---- beside a model ----

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % limit as u64) as usize
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// A random plan: nodes in topological order, the groups one behind the other under shuffled numbers.
struct RandomPlan {
    groups: Vec<u16>,
    reach: Vec<BTreeSet<u16>>,
    /// Nodes of other groups that outputs of a node can go to, over calls within its group, too.
    targets: Vec<Vec<u16>>,
}

impl RandomPlan {
    fn new(random: &mut Random) -> Self {
        let mut numbers: Vec<u16> = (0..1 + random.below(6) as u16).collect();
        (1..numbers.len()).for_each(|i| numbers.swap(i, random.below(i + 1)));
        let groups: Vec<u16> = numbers.iter().flat_map(|group| vec![*group; 1 + random.below(2)]).collect();
        let nodes = groups.len();
        let (mut reach, mut targets) = (vec![BTreeSet::new(); nodes], vec![Vec::new(); nodes]);
        for from in (0..nodes).rev() {
            for to in from + 1..nodes {
                if random.below(3) == 0 {
                    let behind = reach[to].clone();
                    reach[from].extend(behind);
                    if groups[from] == groups[to] {
                        let called = targets[to].clone();
                        targets[from].extend(called);
                    } else {
                        reach[from].insert(groups[to]);
                        targets[from].push(to as u16);
                    }
                }
            }
        }
        Self { groups, reach, targets }
    }
}

struct Live {
    id: u64,
    /// Input, then the path of emission indices.
    place: Vec<u64>,
    node: u16,
    emitted: u64,
    is_held: bool,
}

impl Live {
    /// The least place that the frame, or what it will emit, can have in a group that it has not entered.
    fn stands_at(&self) -> Vec<u64> {
        let next = (!self.is_held).then_some(self.emitted);
        self.place.iter().copied().chain(next).collect()
    }
}

/// The definition, word by word.
struct Model<'a> {
    plan: &'a RandomPlan,
    live: Vec<Live>,
    /// The place that entered each group last.
    latest: HashMap<u16, Vec<u64>>,
    /// The least place of an answer, by input. An answer takes an emission index, like an output.
    answers: HashMap<u64, Vec<u64>>,
}

impl Model<'_> {
    fn group(&self, frame: &Live) -> u16 {
        self.plan.groups[usize::from(frame.node)]
    }

    fn may_enter(&self) -> BTreeSet<u64> {
        let can_reach = |frame: &Live, group: u16| {
            self.plan.reach[usize::from(frame.node)].contains(&group)
                || frame.is_held && self.group(frame) == group
        };
        let held = self.live.iter().filter(|frame| frame.is_held);
        held.filter(|frame| {
            let mut earlier = self.live.iter().filter(|other| other.stands_at() < frame.place);
            !earlier.any(|other| can_reach(other, self.group(frame)))
        })
        .map(|frame| frame.id)
        .collect()
    }

    fn enter(&mut self, id: u64) {
        let frame = self.live.iter_mut().find(|frame| frame.id == id).expect("live");
        frame.is_held = false;
        let (group, place) = (self.plan.groups[usize::from(frame.node)], frame.place.clone());
        if let Some(before) = self.latest.insert(group, place.clone()) {
            assert!(before < place, "group {group}: {place:?} behind {before:?}");
        }
    }

    /// Ids of what executes, or of what is held, in order.
    fn ids(&self, is_held: bool, input: Option<u64>) -> Vec<u64> {
        let of = |frame: &&Live| frame.is_held == is_held && input.is_none_or(|i| frame.place[0] == i);
        let mut frames: Vec<&Live> = self.live.iter().filter(of).collect();
        frames.sort_by_key(|frame| frame.stands_at());
        frames.iter().map(|frame| frame.id).collect()
    }
}

/// What may enter according to `Order`, without letting it enter.
fn may_enter(order: &Order<u64>) -> BTreeSet<u64> {
    let firsts = (0..order.reach.groups as u16).map(|group| (group, order.lists.first(group)));
    let slots = firsts.filter_map(|(group, first)| Some((group, order.slots.get(first as usize)?)));
    slots
        .filter(|(group, slot)| order.reach.ahead(slot.node).group == *group)
        .filter_map(|(_, slot)| slot.held)
        .collect()
}

/// One history; returns how many frames entered.
fn history(seed: u64) -> u64 {
    let mut random = Random(seed);
    let plan = RandomPlan::new(&mut random);
    let reach = plan.reach.iter().map(|groups| groups.iter().copied().collect()).collect();
    let mut order = Order::new(Arc::new(Reach::new(plan.groups.clone(), reach)));
    let mut model = Model { plan: &plan, live: Vec::new(), latest: HashMap::new(), answers: HashMap::new() };
    let (mut input, mut id, mut entered, mut steps) = (0, 0, 0, 40 + random.below(80));
    loop {
        // At the end everything that executes ends, in any order, and nothing is added.
        let is_closing = steps == 0;
        steps = steps.saturating_sub(1);
        let executing = model.ids(false, None);
        match random.below(12) {
            0..=2 if !is_closing => {
                (input, id) = (input + 1 + random.below(3) as u64, id + 1);
                let node = random.below(plan.groups.len()) as u16;
                order.input(input, id, node, id);
                model.live.push(Live { id, place: vec![input], node, emitted: 0, is_held: true });
            }
            3..=6 if !is_closing && !executing.is_empty() => {
                let parent = random.pick(&executing);
                let parent = model.live.iter_mut().find(|frame| frame.id == parent).expect("live");
                let targets = &plan.targets[usize::from(parent.node)];
                if !targets.is_empty() && parent.emitted < 4 {
                    let (node, mut place) = (random.pick(targets), parent.place.clone());
                    place.push(parent.emitted);
                    parent.emitted += 1;
                    id += 1;
                    assert_eq!(order.output(parent.id, id, node, id), Ok(()));
                    model.live.push(Live { id, place, node, emitted: 0, is_held: true });
                }
            }
            7 if input > 0 && random.below(4) == 0 => {
                let input = 1 + random.below(input as usize) as u64;
                assert_eq!(order.end_input(input), model.ids(true, Some(input)), "seed {seed}");
                model.live.retain(|frame| frame.place[0] != input);
                model.answers.remove(&input);
            }
            8 if !executing.is_empty() => {
                let answered = random.pick(&executing);
                let frame = model.live.iter_mut().find(|frame| frame.id == answered).expect("live");
                let (input, place) = (frame.place[0], frame.stands_at());
                frame.emitted += 1;
                let is_first = model.answers.get(&input).is_none_or(|first| place < *first);
                if is_first {
                    model.answers.insert(input, place);
                }
                assert_eq!(order.mark(answered), Some(Marked { input, is_first }), "seed {seed}");
            }
            _ if !executing.is_empty() => {
                let ended = random.pick(&executing);
                order.end(ended);
                model.live.retain(|frame| frame.id != ended);
            }
            _ => {}
        }
        assert_eq!(may_enter(&order), model.may_enter(), "seed {seed}");
        for _ in 0..if is_closing { usize::MAX } else { random.below(4) } {
            let may = model.may_enter();
            let Some(next) = order.next() else {
                assert!(may.is_empty(), "seed {seed}: {may:?} may enter");
                break;
            };
            assert!(may.contains(&next), "seed {seed}: {next} may not enter");
            model.enter(next);
            entered += 1;
            assert_eq!(may_enter(&order), model.may_enter(), "seed {seed}");
        }
        assert_eq!(order.len(), model.live.len());
        if is_closing {
            if model.live.is_empty() {
                // Marks stay until their input's owner has taken its end.
                model.answers.keys().for_each(|input| assert_eq!(order.end_input(*input), []));
                break;
            }
            assert!(!model.ids(false, None).is_empty(), "seed {seed}: stuck");
        }
    }
    assert!(order.is_empty() && order.inputs.is_empty() && order.marks.is_empty());
    assert!(order.free.len() == order.slots.len());
    assert!(order.lists.ends.iter().all(|ends| ends.first == NONE && ends.last == NONE));
    entered
}

#[test]
fn order_01_random_histories_are_those_of_the_model() {
    let entered: u64 = (0..2_000).map(history).sum();
    assert!(entered > 50_000, "{entered} entered: the histories are too short");
}

#[test]
#[ignore = "prints the cost; run it in release"]
fn cost_of_a_chain_of_three_groups() {
    for window in [1u64, 16, 512, 16_384] {
        let mut order = chain();
        let mut executing: [VecDeque<u64>; 3] = Default::default();
        let (inputs, mut done, mut begun) = (1_000_000u64, 0, 0);
        let begin = Instant::now();
        while done < inputs {
            while begun < inputs && begun < done + window {
                order.begin(begun, begun * 3);
                begun += 1;
            }
            while let Some(id) = order.next() {
                executing[(id % 3) as usize].push_back(id);
            }
            for group in [2, 1, 0] {
                while let Some(id) = executing[group].pop_front() {
                    if group < 2 {
                        order.emit(id, id + 1, group as u16 + 1);
                    } else {
                        done += 1;
                    }
                    order.end(id);
                }
            }
        }
        let ns = begin.elapsed().as_nanos() as f64 / (inputs * 3) as f64;
        println!("window {window:>6}: {ns:>6.1} ns a frame, {:>6.1} ns an input", ns * 3.0);
    }
}
