"""Tools that the policy may call, one file each; a file's name is what ``agent.tools`` lists."""
