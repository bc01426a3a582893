//! `orch-agent monitor`: drops, flows and verdicts of policies as they happen.

use std::{
    io::{self, ErrorKind, Write},
    net::IpAddr,
    path::PathBuf,
};

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use orch_dataplane::monitor::{
    Filter, Kind, Message, Protocol, Verdict,
    client::{Monitor, MonitorError},
    line, socket_path,
};

use crate::config::OutputForm;

/// Flags of `monitor`. Every filter that is given must hold.
#[derive(Debug, Args)]
pub struct MonitorArgs {
    /// The agent's directory for what does not survive a reboot.
    #[arg(long, default_value = "/run/orch")]
    pub run_dir: PathBuf,
    /// Form of the output: one line an event, or one JSON object a line.
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: OutputForm,
    /// Only events of this kind; repeatable.
    #[arg(long = "type", value_enum, value_name = "KIND")]
    pub types: Vec<EventKind>,
    /// Only what this pod sends or receives.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = qualified)]
    pub pod: Option<String>,
    /// Only what pods or services of this namespace send or receive.
    #[arg(long)]
    pub namespace: Option<String>,
    /// Only what is sent to this service.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = qualified)]
    pub service: Option<String>,
    /// Only what comes from or goes to this address or network.
    #[arg(long, value_name = "ADDRESS|CIDR", value_parser = network)]
    pub ip: Option<IpNet>,
    /// Only what comes from or goes to this port.
    #[arg(long)]
    pub port: Option<u16>,
    /// Only this protocol.
    #[arg(long, value_enum)]
    pub protocol: Option<EventProtocol>,
    /// Only drops whose reason contains this text.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Only what was allowed (flows, verdicts) or denied (drops).
    #[arg(long, value_enum)]
    pub verdict: Option<Outcome>,
    /// End after so many events.
    #[arg(long)]
    pub count: Option<u64>,
}

/// Kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EventKind {
    /// Refused packets and connections.
    Drop,
    /// New flows of services, with the chosen backend, and masqueraded ones.
    Flow,
    /// New flows that a policy has let pass.
    Verdict,
}

/// Protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EventProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP of either family.
    Icmp,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Outcome {
    /// It passed.
    Allowed,
    /// It was refused.
    Denied,
}

/// Why monitoring ended.
#[derive(Debug, thiserror::Error)]
pub enum MonitorFailure {
    /// The agent's end.
    #[error(transparent)]
    Agent(#[from] MonitorError),
    /// The output is gone.
    #[error("write the output: {0}")]
    Write(io::Error),
}

impl MonitorArgs {
    fn filter(&self) -> Filter {
        let kind = |kind: &EventKind| match kind {
            EventKind::Drop => Kind::Drop,
            EventKind::Flow => Kind::Flow,
            EventKind::Verdict => Kind::Verdict,
        };
        Filter {
            types: self.types.iter().map(kind).collect(),
            pod: self.pod.clone(),
            namespace: self.namespace.clone(),
            service: self.service.clone(),
            ip: self.ip,
            port: self.port,
            protocol: self.protocol.map(|protocol| match protocol {
                EventProtocol::Tcp => Protocol::Tcp,
                EventProtocol::Udp => Protocol::Udp,
                EventProtocol::Sctp => Protocol::Sctp,
                EventProtocol::Icmp => Protocol::Icmp,
            }),
            reason: self.reason.clone(),
            verdict: self.verdict.map(|outcome| match outcome {
                Outcome::Allowed => Verdict::Allowed,
                Outcome::Denied => Verdict::Denied,
            }),
        }
    }
}

/// Writes events until there are enough of them, the reader of the output goes, or the agent ends.
///
/// # Errors
/// When no agent answers, it ends, or the output cannot be written.
pub fn run(args: &MonitorArgs, out: &mut impl Write) -> Result<(), MonitorFailure> {
    let mut monitor = Monitor::connect(&socket_path(&args.run_dir), &args.filter())?;
    let zone = jiff::tz::TimeZone::system();
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let (message, json) = monitor.receive()?;
        if let Message::Ready { .. } = message {
            eprintln!("{}", line(&message, &zone));
            continue;
        }
        left -= u64::from(!matches!(message, Message::Lost { .. }));
        let written = match args.output {
            OutputForm::Text => writeln!(out, "{}", line(&message, &zone)),
            OutputForm::Json => writeln!(out, "{json}"),
        };
        match written.and_then(|()| out.flush()) {
            // `| head` has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            other => other.map_err(MonitorFailure::Write)?,
        }
    }
    Ok(())
}

fn qualified(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(text.to_owned())
        }
        _ => Err("it must be NAMESPACE/NAME".into()),
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from).ok();
    text.parse()
        .ok()
        .or_else(address)
        .ok_or_else(|| "it must be an address or a network like 10.0.0.0/8".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: MonitorArgs,
    }

    #[test]
    fn flags_become_a_filter() {
        let words = "monitor --type drop --type flow --pod default/web --ip 10.0.0.1 --port 80 --protocol icmp \
                     --verdict denied --reason policy --namespace default --service default/api";
        let filter = Line::try_parse_from(words.split_whitespace())
            .unwrap()
            .args
            .filter();
        let wanted = Filter {
            types: vec![Kind::Drop, Kind::Flow],
            pod: Some("default/web".into()),
            namespace: Some("default".into()),
            service: Some("default/api".into()),
            ip: Some("10.0.0.1/32".parse().unwrap()),
            port: Some(80),
            protocol: Some(Protocol::Icmp),
            reason: Some("policy".into()),
            verdict: Some(Verdict::Denied),
        };
        assert_eq!(filter, wanted);
        for wrong in [
            "--pod web",
            "--service a/b/c",
            "--ip 10.0.0",
            "--type drops",
            "--port 70000",
        ] {
            let words = format!("monitor {wrong}");
            assert!(Line::try_parse_from(words.split_whitespace()).is_err(), "{wrong}");
        }
    }
}
