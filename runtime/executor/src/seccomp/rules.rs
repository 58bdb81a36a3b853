//! Profiles in a checked form, and what they answer. The compiler and the test's naive evaluation
//! both start here.

use amphora_spec::runtime::{Seccomp, SeccompArg, SeccompRule};

use super::{Arch, SeccompError};

/// `SECCOMP_RET_KILL_PROCESS`.
pub(super) const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
/// `SECCOMP_RET_USER_NOTIF`.
const NOTIFY: u32 = 0x7fc0_0000;
pub(super) const NOTIFY_NAME: &str = "SCMP_ACT_NOTIFY";
/// `SECCOMP_RET_ALLOW`.
pub(super) const ALLOW: u32 = 0x7fff_0000;

/// Every action that a profile may name.
pub const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    NOTIFY_NAME,
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
/// Every comparison that a profile may name.
pub const OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

const EPERM: u32 = 1;
/// Largest error number the kernel hands to a program.
const ERRNO_MAX: u32 = 4095;
/// Arguments of a system call.
const ARGS: u32 = 6;

/// How an argument is compared with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Op {
    Ne,
    Lt,
    Le,
    Eq,
    Ge,
    Gt,
    /// The argument, masked with this.
    MaskedEq(u64),
}

/// One comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cond {
    pub(super) arg: u32,
    pub(super) op: Op,
    pub(super) value: u64,
}

/// What is answered when all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    pub(super) conds: Vec<Cond>,
    pub(super) action: u32,
}

/// The rules of one architecture: for each number in order, the first that holds counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) default: u32,
    rules: Vec<Rule>,
    /// System call numbers and the rules (indices) that name them, sorted.
    calls: Vec<(u32, usize)>,
}

impl Rules {
    /// Checks a profile and looks its names up. Names that this architecture does not have are
    /// left out, as other runtimes do: profiles list the calls of all kernels.
    pub(super) fn new(profile: &Seccomp, arch: Arch) -> Result<Self, SeccompError> {
        if profile.default_action == NOTIFY_NAME {
            return Err(SeccompError::invalid(
                "linux.seccomp.defaultAction",
                NOTIFY_NAME,
            ));
        }
        let default = action(
            &profile.default_action,
            profile.default_errno_ret,
            "linux.seccomp.defaultAction",
        )?;
        let mut rules = Self {
            default,
            rules: Vec::new(),
            calls: Vec::with_capacity(512),
        };
        for (index, rule) in profile.syscalls.iter().enumerate() {
            let field = |part: &str| format!("linux.seccomp.syscalls[{index}].{part}");
            let action = action(&rule.action, rule.errno_ret, &field("action"))?;
            // The child says by it that its listener is there, before anybody can answer.
            if action == NOTIFY && rule.names.iter().any(|name| name == "write") {
                return Err(SeccompError::invalid(
                    field("names with SCMP_ACT_NOTIFY"),
                    "write",
                ));
            }
            let first = rules.rules.len();
            let alternatives = alternatives(rule, &field("args"))?;
            rules
                .rules
                .extend(alternatives.into_iter().map(|conds| Rule { conds, action }));
            let these = first..rules.rules.len();
            for number in rule.names.iter().filter_map(|name| arch.number(name)) {
                rules.calls.extend(these.clone().map(|rule| (number, rule)));
            }
        }
        rules.calls.sort_unstable();
        Ok(rules)
    }

    /// Every number that is named, in order, with the rules that count for it: what follows a rule
    /// without conditions is never reached.
    pub(super) fn calls(&self) -> impl Iterator<Item = (u32, Vec<&Rule>)> {
        self.calls.chunk_by(|a, b| a.0 == b.0).filter_map(|chunk| {
            let number = chunk.first()?.0;
            let mut held: Vec<&Rule> = Vec::with_capacity(1);
            for rule in chunk.iter().filter_map(|(_, rule)| self.rules.get(*rule)) {
                held.push(rule);
                if rule.conds.is_empty() {
                    break;
                }
            }
            Some((number, held))
        })
    }
}

fn action(name: &str, errno: Option<u32>, field: &str) -> Result<u32, SeccompError> {
    let data = errno.unwrap_or(EPERM);
    if let Some(errno) = errno
        && !matches!(name, "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE")
    {
        let field = format!("{field}: errnoRet beside {name}");
        return Err(SeccompError::invalid(field, errno));
    }
    let with_data = |base: u32, max: u32| {
        if data > max {
            return Err(SeccompError::invalid(format!("{field} (errnoRet)"), data));
        }
        Ok(base | data)
    };
    match name {
        "SCMP_ACT_ALLOW" => Ok(ALLOW),
        "SCMP_ACT_ERRNO" => with_data(ERRNO, ERRNO_MAX),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(KILL_THREAD),
        "SCMP_ACT_KILL_PROCESS" => Ok(KILL_PROCESS),
        "SCMP_ACT_TRAP" => Ok(TRAP),
        "SCMP_ACT_TRACE" => with_data(TRACE, 0xffff),
        "SCMP_ACT_LOG" => Ok(LOG),
        NOTIFY_NAME => Ok(NOTIFY),
        other => Err(SeccompError::invalid(field, other)),
    }
}

/// The lists of conditions of a rule of which one must hold. That is one list, unless an argument
/// is compared twice: then each comparison stands for itself, as Docker's runtime has it.
fn alternatives(rule: &SeccompRule, field: &str) -> Result<Vec<Vec<Cond>>, SeccompError> {
    let conds = rule
        .args
        .iter()
        .map(|arg| cond(arg, field))
        .collect::<Result<Vec<_>, _>>()?;
    let twice = (0..ARGS).any(|arg| conds.iter().filter(|cond| cond.arg == arg).count() > 1);
    if twice {
        return Ok(conds.into_iter().map(|cond| vec![cond]).collect());
    }
    Ok(vec![conds])
}

fn cond(arg: &SeccompArg, field: &str) -> Result<Cond, SeccompError> {
    if arg.index >= ARGS {
        return Err(SeccompError::invalid(format!("{field} index"), arg.index));
    }
    let (op, value) = match arg.op.as_str() {
        "SCMP_CMP_NE" => (Op::Ne, arg.value),
        "SCMP_CMP_LT" => (Op::Lt, arg.value),
        "SCMP_CMP_LE" => (Op::Le, arg.value),
        "SCMP_CMP_EQ" => (Op::Eq, arg.value),
        "SCMP_CMP_GE" => (Op::Ge, arg.value),
        "SCMP_CMP_GT" => (Op::Gt, arg.value),
        "SCMP_CMP_MASKED_EQ" => (Op::MaskedEq(arg.value), arg.value_two),
        other => return Err(SeccompError::invalid(format!("{field} op"), other)),
    };
    Ok(Cond {
        arg: arg.index,
        op,
        value,
    })
}

#[cfg(test)]
impl Rules {
    /// The answer, found by going through the rules.
    pub(super) fn answer(&self, number: u32, args: &[u64; 6]) -> u32 {
        let held = self.rules_of(number);
        let found = held
            .into_iter()
            .find(|rule| rule.conds.iter().all(|cond| cond.holds(args)));
        found.map_or(self.default, |rule| rule.action)
    }

    /// All rules that name a number.
    pub(super) fn rules_of(&self, number: u32) -> Vec<&Rule> {
        let start = self.calls.partition_point(|(held, _)| *held < number);
        let these = self.calls[start..]
            .iter()
            .take_while(|(held, _)| *held == number);
        these.map(|(_, rule)| &self.rules[*rule]).collect()
    }
}

#[cfg(test)]
impl Cond {
    fn holds(&self, args: &[u64; 6]) -> bool {
        let arg = args[self.arg as usize];
        match self.op {
            Op::Ne => arg != self.value,
            Op::Lt => arg < self.value,
            Op::Le => arg <= self.value,
            Op::Eq => arg == self.value,
            Op::Ge => arg >= self.value,
            Op::Gt => arg > self.value,
            Op::MaskedEq(mask) => arg & mask == self.value,
        }
    }
}
