//! Who a process runs as, by an image's own passwd and group files (passwd(5), group(5)).

use super::types::User;
use crate::UserSpec;

/// Why a user could not be found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unknown(pub(crate) String);

/// One line of a passwd file.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

/// Resolves what a container asks for, or else what its image says.
pub(crate) fn resolve(spec: &UserSpec, image: &str, passwd: &str, group: &str) -> Result<User, Unknown> {
    let asked = match (spec.uid, &spec.username) {
        (Some(uid), _) => uid.to_string(),
        (None, Some(name)) => name.clone(),
        (None, None) => image.to_owned(),
    };
    let (who, with_group) = match asked.split_once(':') {
        Some((who, group)) => (who.to_owned(), Some(group.to_owned())),
        None => (asked, None),
    };
    let who = if who.is_empty() { "0".to_owned() } else { who };
    let accounts = || passwd.lines().filter_map(account);
    let (uid, found) = match who.parse::<u32>() {
        Ok(uid) => (uid, accounts().find(|a| a.uid == uid)),
        Err(_) => {
            let found = accounts()
                .find(|a| a.name == who)
                .ok_or_else(|| Unknown(who.clone()))?;
            (found.uid, Some(found))
        }
    };
    let gid = match (spec.gid, with_group) {
        (Some(gid), _) => gid,
        (None, Some(name)) => match name.parse::<u32>() {
            Ok(gid) => gid,
            Err(_) => groups(group).find(|g| g.name == name).ok_or(Unknown(name))?.gid,
        },
        (None, None) => found.as_ref().map_or(0, |a| a.gid),
    };
    let mut additional_gids = vec![gid];
    if let (Some(account), false) = (&found, spec.strict_groups) {
        additional_gids.extend(
            groups(group)
                .filter(|g| g.members.split(',').any(|m| m == account.name))
                .map(|g| g.gid),
        );
    }
    additional_gids.extend(&spec.supplementary);
    let mut seen = std::collections::HashSet::new();
    additional_gids.retain(|gid| seen.insert(*gid));
    Ok(User {
        uid,
        gid,
        additional_gids,
    })
}

fn account(line: &str) -> Option<Account<'_>> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let uid = fields.nth(1)?.parse().ok()?;
    Some(Account {
        name,
        uid,
        gid: fields.next()?.parse().ok()?,
    })
}

/// One line of a group file.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn groups(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group {
            name,
            gid,
            members: fields.next().unwrap_or(""),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:web:/srv:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nlogs:x:4:web,root\nextra:x:50:web\n";

    fn user(spec: &UserSpec, image: &str) -> Result<(u32, u32, Vec<u32>), Unknown> {
        resolve(spec, image, PASSWD, GROUP).map(|u| (u.uid, u.gid, u.additional_gids))
    }

    #[test]
    fn the_image_decides_when_nothing_is_asked() {
        let none = UserSpec::default();
        assert_eq!(user(&none, ""), Ok((0, 0, vec![0, 4])));
        assert_eq!(user(&none, "web"), Ok((101, 102, vec![102, 4, 50])));
        assert_eq!(user(&none, "web:extra"), Ok((101, 50, vec![50, 4])));
        assert_eq!(user(&none, "101"), Ok((101, 102, vec![102, 4, 50])));
        assert_eq!(user(&none, "7:8"), Ok((7, 8, vec![8])));
        assert_eq!(user(&none, "nobody"), Err(Unknown("nobody".to_owned())));
    }

    #[test]
    fn a_container_overrides_its_image() {
        let spec = UserSpec {
            uid: Some(2000),
            supplementary: vec![7, 7],
            ..UserSpec::default()
        };
        assert_eq!(user(&spec, "web"), Ok((2000, 0, vec![0, 7])));
        let spec = UserSpec {
            uid: Some(101),
            gid: Some(9),
            strict_groups: true,
            ..UserSpec::default()
        };
        assert_eq!(user(&spec, ""), Ok((101, 9, vec![9])));
    }
}
